"""Names, shapes and axis orders of the tensors of Hugging Face's ALIGN and BERT."""

from align_jax.models.bert import TOKEN_TYPES, BertConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.efficientnet import (
    STEM_CHANNELS,
    EfficientNetConfig,
    expand_stages,
    round_channels,
)
from align_jax.models.parameters import Path
from align_jax.weights.huggingface_config import align_towers
from align_jax.weights.tensors import Tensor

# Permutations from their axis order to ours: a convolution is OIHW there and HWIO here,
# a dense layer is (out, in) there and (in, out) here.
CONVOLUTION, DENSE = (2, 3, 1, 0), (1, 0)


def list_tensors(config: ModelConfig) -> list[Tensor]:
    """Lists the tensors of an `AlignModel` that our model has too.

    Raises:
      InputError: the towers are not those of ALIGN, see `align_towers`.
    """
    image, text = align_towers(config)
    projection = ("params", "text_projection")
    return [
        *_image_tensors(image),
        *bert_tensors(text, "text_model."),
        *_dense("text_projection", projection, image.output_width, text.hidden),
        Tensor("temperature", ("params", "temperature"), (), ()),
    ]


def list_unused(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes, by name, of tensors that an `AlignModel` has but never uses.

    They are the pooler on top of BERT and each BatchNorm's count of batches.
    """
    image, text = align_towers(config)
    counts = [
        tensor.name.replace("running_mean", "num_batches_tracked")
        for tensor in _image_tensors(image)
        if tensor.name.endswith("running_mean")
    ]
    pooler = "text_model.pooler.dense"
    return dict.fromkeys(counts, ()) | {
        f"{pooler}.weight": (text.hidden, text.hidden),
        f"{pooler}.bias": (text.hidden,),
    }


def bert_tensors(config: BertConfig, prefix: str) -> list[Tensor]:
    """Lists the tensors of a Hugging Face BERT without its pooler.

    Args:
      config: config of our text tower.
      prefix: first part of all names in the other codebase, such as "text_model.".
    """
    tower = ("params", "text_tower")
    hidden = config.hidden

    def embedding(name: str, rows: int) -> Tensor:
        full = f"{prefix}embeddings.{name}.weight"
        return Tensor(full, (*tower, name, "embedding"), (rows, hidden), (0, 1))

    found = [
        embedding("word_embeddings", config.vocabulary_size),
        embedding("position_embeddings", config.positions),
        embedding("token_type_embeddings", TOKEN_TYPES),
        *_norm(f"{prefix}embeddings.LayerNorm", (*tower, "embeddings_norm"), hidden),
    ]
    for index, layer in enumerate(config.block_names()):
        theirs, ours = f"{prefix}encoder.layer.{index}", (*tower, layer)
        for name in ("query", "key", "value"):
            full = f"{theirs}.attention.self.{name}"
            found += _dense(full, (*ours, name), hidden, hidden)
        found += [
            *_dense(
                f"{theirs}.attention.output.dense",
                (*ours, "attention_output"),
                hidden,
                hidden,
            ),
            *_norm(
                f"{theirs}.attention.output.LayerNorm",
                (*ours, "attention_norm"),
                hidden,
            ),
            *_dense(
                f"{theirs}.intermediate.dense",
                (*ours, "intermediate"),
                4 * hidden,
                hidden,
            ),
            *_dense(f"{theirs}.output.dense", (*ours, "output"), hidden, 4 * hidden),
            *_norm(f"{theirs}.output.LayerNorm", (*ours, "output_norm"), hidden),
        ]
    return found


def _image_tensors(config: EfficientNetConfig) -> list[Tensor]:
    """Lists the tensors of an `AlignModel`'s image tower that our model has too."""
    tower = ("image_tower",)
    stem = round_channels(STEM_CHANNELS, config.width)
    prefix = "vision_model.embeddings"
    found = [
        _convolution(f"{prefix}.convolution", (*tower, "stem"), (stem, 3, 3, 3)),
        *_batch_norm(f"{prefix}.batchnorm", (*tower, "stem_norm"), stem),
    ]
    names = config.block_names()
    blocks = [block for stage in expand_stages(config) for block in stage]
    for index, (name, block) in enumerate(zip(names, blocks, strict=True)):
        theirs, ours = f"vision_model.encoder.blocks.{index}", (*tower, name)
        entering, leaving = block.channels_in, block.channels_out
        wide, narrow = block.expanded, block.reduced
        if block.expansion != 1:
            name = f"{theirs}.expansion.expand"
            found += [
                _convolution(f"{name}_conv", (*ours, "expand"), (wide, entering, 1, 1)),
                *_batch_norm(f"{name}_bn", (*ours, "expand_norm"), wide),
            ]
        name, side = f"{theirs}.depthwise_conv.depthwise", block.kernel
        found += [
            _convolution(f"{name}_conv", (*ours, "depthwise"), (wide, 1, side, side)),
            *_batch_norm(f"{name}_norm", (*ours, "depthwise_norm"), wide),
        ]
        for name, shape in (
            ("reduce", (narrow, wide, 1, 1)),
            ("expand", (wide, narrow, 1, 1)),
        ):
            path = ("params", *ours, "squeeze_excite", name)
            full = f"{theirs}.squeeze_excite.{name}"
            found += [
                Tensor(f"{full}.weight", (*path, "kernel"), shape, CONVOLUTION),
                Tensor(f"{full}.bias", (*path, "bias"), shape[:1], (0,)),
            ]
        name = f"{theirs}.projection.project"
        found += [
            _convolution(f"{name}_conv", (*ours, "project"), (leaving, wide, 1, 1)),
            *_batch_norm(f"{name}_bn", (*ours, "project_norm"), leaving),
        ]
    return found


def _convolution(name: str, ours: Path, shape: tuple[int, ...]) -> Tensor:
    return Tensor(f"{name}.weight", ("params", *ours, "kernel"), shape, CONVOLUTION)


def _dense(name: str, ours: Path, out: int, entering: int) -> list[Tensor]:
    return [
        Tensor(f"{name}.weight", (*ours, "kernel"), (out, entering), DENSE),
        Tensor(f"{name}.bias", (*ours, "bias"), (out,), (0,)),
    ]


def _norm(name: str, ours: Path, width: int) -> list[Tensor]:
    return [
        Tensor(f"{name}.weight", (*ours, "scale"), (width,), (0,)),
        Tensor(f"{name}.bias", (*ours, "bias"), (width,), (0,)),
    ]


def _batch_norm(name: str, ours: Path, width: int) -> list[Tensor]:
    statistics = ("batch_stats", *ours)
    return [
        *_norm(name, ("params", *ours), width),
        Tensor(f"{name}.running_mean", (*statistics, "mean"), (width,), (0,)),
        Tensor(f"{name}.running_var", (*statistics, "var"), (width,), (0,)),
    ]
