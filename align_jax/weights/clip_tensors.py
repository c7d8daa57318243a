"""Names, shapes and axis orders of the tensors of Hugging Face's CLIP and SigLIP."""

from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import Path
from align_jax.models.transformer import TransformerConfig
from align_jax.models.vit import VitConfig
from align_jax.weights.clip_config import clip_towers
from align_jax.weights.clip_forms import CLIP, SIGLIP2
from align_jax.weights.tensors import Tensor

# Permutations from their axis order to ours: a convolution is OIHW there and HWIO here,
# a dense layer is (out, in) there and (in, out) here.
CONVOLUTION, DENSE = (2, 3, 1, 0), (1, 0)
IMAGE, TEXT = ("params", "image_tower"), ("params", "text_tower")
IMAGE_PREFIX, TEXT_PREFIX = "vision_model.", "text_model."
# Names, below a block, of the other codebase's layers and of ours.
BLOCK_NORMS = {"layer_norm1": "attention_norm", "layer_norm2": "mlp_norm"}
ATTENTION = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "attention_output",
}
JOINT = ("query", "key", "value")  # parts of one tensor, in order


def list_tensors(config: ModelConfig, kind: str) -> list[Tensor]:
    """Lists the tensors of a model of transformers that our model has too.

    Args:
      config: config of our model, which `clip_config.find_form` accepts.
      kind: a key of `clip_forms.FORMS`.
    """
    image, text = clip_towers(config)
    logarithm, projection = ("params", "log_temperature"), ("params", "text_projection")
    found = [*image_tensors(image, kind), *text_tensors(text)]
    if kind == CLIP:
        size, path = config.width, ("params", "image_projection")
        return [
            *found,
            *dense("visual_projection", path, size, image.width)[:1],
            *dense("text_projection", projection, size, text.width)[:1],
            Tensor("logit_scale", logarithm, (), (), negated=True),
        ]
    head = f"{TEXT_PREFIX}head"
    return [
        *found,
        *dense(head, projection, config.width, text.width),
        Tensor("logit_scale", logarithm, (1,), (0,), negated=True),
        Tensor("logit_bias", ("params", "logit_bias"), (1,), (0,)),
    ]


def image_tensors(
    config: VitConfig, kind: str, prefix: str = IMAGE_PREFIX
) -> list[Tensor]:
    """Lists the tensors of an image tower.

    Args:
      config: config of our tower.
      kind: a key of `clip_forms.FORMS`.
      prefix: first part of all names in the other codebase.
    """
    width, embeddings = config.width, f"{prefix}embeddings"
    patches = (*IMAGE, "patches")
    shape, axes = (width, 3, config.patch, config.patch), CONVOLUTION
    if kind == SIGLIP2:  # a dense layer over the rows, columns and colours of a patch
        shape, axes = (width, 3 * config.patch**2), DENSE  # type: ignore[assignment]
    name = f"{embeddings}.patch_embedding"
    found = [Tensor(f"{name}.weight", (*patches, "kernel"), shape, axes)]
    if config.patch_bias:
        found.append(Tensor(f"{name}.bias", (*patches, "bias"), (width,), (0,)))
    rows, name = config.position_grid**2, f"{embeddings}.position_embedding.weight"
    if kind == CLIP:
        token = (*IMAGE, "class_token")
        found.append(Tensor(f"{embeddings}.class_embedding", token, (width,), (0,)))
        found += norm(f"{prefix}pre_layrnorm", (*IMAGE, "pre_norm"), width)
        rows += 1
    found += [
        Tensor(name, (*IMAGE, "position_embeddings"), (rows, width), (0, 1)),
        *_block_tensors(config, f"{prefix}encoder.layers", IMAGE),
        *norm(f"{prefix}post_layernorm", (*IMAGE, "final_norm"), width),
    ]
    if kind != CLIP:
        found += _pool_tensors(config, f"{prefix}head")
    return found


def text_tensors(config: TransformerConfig, prefix: str = TEXT_PREFIX) -> list[Tensor]:
    """Lists the tensors of a text tower; the arguments are as for `image_tensors`."""
    width = config.width
    tables = {"token": config.vocabulary_size, "position": config.positions}
    found = [
        Tensor(
            f"{prefix}embeddings.{name}_embedding.weight",
            (*TEXT, f"{ours}_embeddings", "embedding"),
            (tables[name], width),
            (0, 1),
        )
        for name, ours in (("token", "word"), ("position", "position"))
    ]
    return [
        *found,
        *_block_tensors(config, f"{prefix}encoder.layers", TEXT),
        *norm(f"{prefix}final_layer_norm", (*TEXT, "final_norm"), width),
    ]


def _block_tensors(
    config: VitConfig | TransformerConfig, prefix: str, tower: Path
) -> list[Tensor]:
    """Lists the tensors of a tower's blocks."""
    width, found = config.width, []
    for index, block in enumerate(config.block_names()):
        theirs, ours = f"{prefix}.{index}", (*tower, block)
        for name, own in BLOCK_NORMS.items():
            found += norm(f"{theirs}.{name}", (*ours, own), width)
        for name, own in ATTENTION.items():
            found += dense(f"{theirs}.{name}", (*ours, own), width, width)
        found += mlp(f"{theirs}.mlp", ours, config, ("fc1", "fc2"))
    return found


def _pool_tensors(config: VitConfig, prefix: str) -> list[Tensor]:
    """Lists the tensors of the attention pooling; queries, keys and values are one."""
    width, ours = config.width, (*IMAGE, "pool")
    attention = f"{prefix}.attention"
    return [
        Tensor(f"{prefix}.probe", (*ours, "probe"), (1, 1, width), (0, 1, 2)),
        *joint(f"{attention}.in_proj_", ours, width, JOINT),
        *dense(f"{attention}.out_proj", (*ours, "attention_output"), width, width),
        *norm(f"{prefix}.layernorm", (*ours, "norm"), width),
        *mlp(f"{prefix}.mlp", ours, config, ("fc1", "fc2")),
    ]


def mlp(
    prefix: str, ours: Path, config: VitConfig | TransformerConfig, names: tuple
) -> list[Tensor]:
    """Lists the tensors of an MLP whose two layers have the given names."""
    first, second = (f"{prefix}.{name}" for name in names)
    return [
        *dense(first, (*ours, "intermediate"), config.mlp_width, config.width),
        *dense(second, (*ours, "output"), config.width, config.mlp_width),
    ]


def joint(prefix: str, ours: Path, width: int, names: tuple[str, ...]) -> list[Tensor]:
    """Lists our layers that are parts of one layer of the other codebase, in order.

    Args:
      prefix: name of that layer, before "weight" and "bias".
      ours: path of the module that has our layers.
      width: width of the input and of each part.
      names: our layers.
    """
    parts = [(name, (i, len(names))) for i, name in enumerate(names)]
    weight, bias, square = f"{prefix}weight", f"{prefix}bias", (width, width)
    return [
        *(Tensor(weight, (*ours, n, "kernel"), square, DENSE, p) for n, p in parts),
        *(Tensor(bias, (*ours, n, "bias"), (width,), (0,), p) for n, p in parts),
    ]


def dense(name: str, ours: Path, out: int, entering: int) -> list[Tensor]:
    """Lists the weight (out, in) and the bias of a dense layer."""
    return [
        Tensor(f"{name}.weight", (*ours, "kernel"), (out, entering), DENSE),
        Tensor(f"{name}.bias", (*ours, "bias"), (out,), (0,)),
    ]


def norm(name: str, ours: Path, width: int) -> list[Tensor]:
    """Lists the scale and the bias of a layer norm."""
    return [
        Tensor(f"{name}.weight", (*ours, "scale"), (width,), (0,)),
        Tensor(f"{name}.bias", (*ours, "bias"), (width,), (0,)),
    ]
