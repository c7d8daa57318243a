"""Hugging Face's ALIGN (`AlignModel`): its tensors' names and its config, both ways."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from align_jax.errors import InputError
from align_jax.models.bert import HEAD_WIDTH, TOKEN_TYPES, BertConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.efficientnet import (
    STAGES,
    STEM_CHANNELS,
    EfficientNetConfig,
    expand_stages,
    pooled_width,
    round_channels,
)
from align_jax.models.mbconv import SQUEEZE_RATIO
from align_jax.models.parameters import Path, Tensor

# Axes that bring their order to ours: convolutions are OIHW there and HWIO here, dense
# layers (out, in) there and (in, out) here.
CONVOLUTION, DENSE = (2, 3, 1, 0), (1, 0)

# What `AlignTextConfig` and `AlignVisionConfig` take where config.json is silent.
TEXT_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": TOKEN_TYPES,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
VISION_DEFAULTS = {
    "num_channels": 3,
    "width_coefficient": 2.0,
    "depth_coefficient": 3.1,
    "depth_divisor": 8,
    "kernel_sizes": [stage[1] for stage in STAGES],
    "in_channels": [STEM_CHANNELS, *(stage[4] for stage in STAGES[:-1])],
    "out_channels": [stage[4] for stage in STAGES],
    "depthwise_padding": [],
    "strides": [stage[2] for stage in STAGES],
    "num_block_repeats": [stage[0] for stage in STAGES],
    "expand_ratios": [stage[3] for stage in STAGES],
    "squeeze_expansion_ratio": SQUEEZE_RATIO,
    "hidden_act": "swish",
    "pooling_type": "mean",
    "batch_norm_eps": 1e-3,
    "batch_norm_momentum": 0.99,
    "drop_connect_rate": 0.2,
}
# Fields in which our towers have no choice.
TEXT_FIXED = ("hidden_act", "type_vocab_size", "layer_norm_eps", "pad_token_id")
VISION_FIXED = tuple(
    VISION_DEFAULTS.keys()
    - {
        "width_coefficient",
        "depth_coefficient",
        "depthwise_padding",
        "batch_norm_momentum",
        "drop_connect_rate",
    }
)


def read_model_config(
    described: Mapping[str, Any], image_size: int, max_tokens: int, source: str
) -> ModelConfig:
    """Translates the config.json of an `AlignModel`.

    Args:
      described: the parsed file.
      image_size: side of the pictures, pixels; decides what its padding means.
      max_tokens: longest text.
      source: the file, for messages.

    Raises:
      InputError: it describes a network that ours is not; names the field.
    """
    text = TEXT_DEFAULTS | (described.get("text_config") or {})
    vision = VISION_DEFAULTS | (described.get("vision_config") or {})
    _check_fixed(vision, VISION_DEFAULTS, VISION_FIXED, f"{source}: vision_config")
    tower = EfficientNetConfig(
        width=float(vision["width_coefficient"]),
        depth=float(vision["depth_coefficient"]),
        drop_rate=float(vision["drop_connect_rate"]),
        batch_norm_momentum=float(vision["batch_norm_momentum"]),
    )
    padding = _read_padding(vision, tower, image_size, source)
    tower = dataclasses.replace(tower, padding=padding)
    width = described.get("projection_dim", 640)
    if width != pooled_width(tower):
        raise InputError(
            f"{source}: projection_dim is {width}, but the image tower's width is"
            f" {pooled_width(tower)}; ALIGN compares them as they are"
        )
    return ModelConfig(
        tower, read_bert_config(text, max_tokens, f"{source}: text_config")
    )


def read_bert_config(
    described: Mapping[str, Any], max_tokens: int, where: str
) -> BertConfig:
    """Translates a BERT config; raises InputError where ours cannot be it."""
    text = TEXT_DEFAULTS | dict(described)
    _check_fixed(text, TEXT_DEFAULTS, TEXT_FIXED, where)
    hidden = text["hidden_size"]
    derived = {
        "num_attention_heads": hidden // HEAD_WIDTH,
        "intermediate_size": 4 * hidden,
    }
    _check_fixed(text, derived, derived, where)
    return BertConfig(
        vocabulary_size=text["vocab_size"],
        max_tokens=min(max_tokens, text["max_position_embeddings"]),
        positions=text["max_position_embeddings"],
        layers=text["num_hidden_layers"],
        hidden=hidden,
        dropout=float(text["hidden_dropout_prob"]),
    )


def write_model_config(config: ModelConfig, image_size: int) -> dict[str, Any]:
    """Describes a model as the config.json of an `AlignModel`; undoes the reading.

    Raises:
      InputError: the model has what an `AlignModel` cannot have.
    """
    tower, text = config.image_tower, config.text_tower
    if config.embedding_size is not None or tower.top_conv:
        raise InputError(
            "an AlignModel compares the pooled last block as it is, but this model has"
            f" embedding_size = {config.embedding_size}, top_conv = {tower.top_conv}"
        )
    if config.logit_bias_init is not None:
        raise InputError("an AlignModel's logits have no bias, but this model's have")
    return {
        "architectures": ["AlignModel"],
        "model_type": "align",
        "projection_dim": pooled_width(tower),
        "temperature_init_value": config.temperature_init,
        "text_config": TEXT_DEFAULTS
        | {
            "model_type": "align_text_model",
            "vocab_size": text.vocabulary_size,
            "hidden_size": text.hidden,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.hidden // HEAD_WIDTH,
            "intermediate_size": 4 * text.hidden,
            "hidden_dropout_prob": text.dropout,
            "max_position_embeddings": text.positions,
        },
        "vision_config": VISION_DEFAULTS
        | {
            "model_type": "align_vision_model",
            "image_size": image_size,
            "width_coefficient": tower.width,
            "depth_coefficient": tower.depth,
            "depthwise_padding": _write_padding(tower, image_size),
            "batch_norm_momentum": tower.batch_norm_momentum,
            "drop_connect_rate": tower.drop_rate,
            # There the side of the final pooling's window: beyond any last grid.
            "hidden_dim": max(pooled_width(tower), image_size),
        },
    }


def list_tensors(config: ModelConfig) -> list[Tensor]:
    """Lists the tensors of an `AlignModel` that our towers have too."""
    width, hidden = pooled_width(config.image_tower), config.text_tower.hidden
    projection = ("params", "text_projection")
    return [
        *_image_tensors(config.image_tower),
        *bert_tensors(config.text_tower, "text_model."),
        *_dense("text_projection", projection, width, hidden),
        Tensor("temperature", ("params", "temperature"), (), ()),
    ]


def list_unused(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that an `AlignModel` has and never computes with.

    They are the pooler on top of BERT and each BatchNorm's count of batches.
    """
    hidden = config.text_tower.hidden
    counts = [
        tensor.name.replace("running_mean", "num_batches_tracked")
        for tensor in _image_tensors(config.image_tower)
        if tensor.name.endswith("running_mean")
    ]
    pooler = "text_model.pooler.dense"
    return dict.fromkeys(counts, ()) | {
        f"{pooler}.weight": (hidden, hidden),
        f"{pooler}.bias": (hidden,),
    }


def bert_tensors(config: BertConfig, prefix: str) -> list[Tensor]:
    """Lists the tensors of a Hugging Face BERT without its pooler."""
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
    for index in range(config.layers):
        theirs, ours = f"{prefix}encoder.layer.{index}", (*tower, f"layer_{index:02}")
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
    """Lists the tensors of an `AlignVisionModel`."""
    tower = ("image_tower",)
    stem = round_channels(STEM_CHANNELS, config.width)
    prefix = "vision_model.embeddings"
    found = [
        _convolution(f"{prefix}.convolution", (*tower, "stem"), (stem, 3, 3, 3)),
        *_batch_norm(f"{prefix}.batchnorm", (*tower, "stem_norm"), stem),
    ]
    blocks = [block for stage in expand_stages(config) for block in stage]
    for index, block in enumerate(blocks):
        theirs = f"vision_model.encoder.blocks.{index}"
        ours = (*tower, f"block_{index:02}")
        entering, leaving = block.channels_in, block.channels_out
        wide = entering * block.expansion
        narrow = max(1, int(entering * SQUEEZE_RATIO))
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


def _square_blocks(config: EfficientNetConfig, image_size: int) -> list[int]:
    """Blocks that TensorFlow's rule pads alike on both sides: stride 2, odd input."""
    side, found = -(-image_size // 2), []
    blocks = [block for stage in expand_stages(config) for block in stage]
    for index, block in enumerate(blocks):
        if block.stride == 2 and side % 2:
            found.append(index)
        side = -(-side // block.stride)
    return found


def _read_padding(
    vision: Mapping[str, Any], tower: EfficientNetConfig, image_size: int, source: str
) -> str:
    """Our rule for Hugging Face's list of blocks padded alike on both sides."""
    listed = vision["depthwise_padding"]
    if not listed:
        return "keras"
    wanted = _square_blocks(tower, image_size)
    blocks = [block for stage in expand_stages(tower) for block in stage]
    effective = [i for i in listed if i < len(blocks) and blocks[i].stride == 2]
    if image_size % 2 or effective != wanted:
        raise InputError(
            f"{source}: vision_config.depthwise_padding is {listed}; for"
            f" {image_size} pixels ours is [] or, where that is even, {wanted}"
        )
    return "same"


def _write_padding(tower: EfficientNetConfig, image_size: int) -> list[int]:
    if tower.padding == "keras":
        return []
    if image_size % 2:
        raise InputError(
            f"padding 'same' at {image_size} pixels pads the stem on both sides, which"
            " an AlignModel cannot; train with image_tower.padding = 'keras' or at an"
            " even preprocess.image_size"
        )
    return _square_blocks(tower, image_size)


def _check_fixed(
    found: Mapping[str, Any], wanted: Mapping[str, Any], names: Any, where: str
) -> None:
    for name in sorted(names):
        value = found[name]
        if (list(value) if isinstance(value, tuple) else value) != wanted[name]:
            raise InputError(f"{where}.{name} is {value}; ours is {wanted[name]}")
