"""Names, shapes and axis orders of the tensors of OpenCLIP's models."""

from typing import cast

from align_jax.models.convnext import ConvNeXtConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import Path
from align_jax.models.transformer import TransformerConfig
from align_jax.models.vit import VitConfig
from align_jax.weights.clip_config import clip_towers
from align_jax.weights.clip_tensors import (
    CONVOLUTION,
    IMAGE,
    JOINT,
    TEXT,
    dense,
    joint,
    mlp,
    norm,
)
from align_jax.weights.open_clip_convnext import convnext_tensors
from align_jax.weights.tensors import Tensor


def list_tensors(config: ModelConfig, text_prefix: str = "") -> list[Tensor]:
    """Lists the tensors of a model of OpenCLIP that our model has too.

    Args:
      config: config of our model, as `open_clip_config.read_open_clip` returns it.
      text_prefix: first part of the names of the text tower: "", or "text." in a
        model with `custom_text`.
    """
    text = cast(TransformerConfig, config.text_tower)
    found = _list_image_tensors(config)
    found += _text_tensors(text, text_prefix)
    name, path = f"{text_prefix}text_projection", ("params", "text_projection")
    if config.projection_bias:
        found += dense(name, path, config.width, text.width)
    else:
        shape = (text.width, config.width)
        found.append(Tensor(name, (*path, "kernel"), shape, (0, 1)))
    logarithm = ("params", "log_temperature")
    found.append(Tensor("logit_scale", logarithm, (), (), negated=True))
    if config.logit_bias_init is not None:
        found.append(Tensor("logit_bias", ("params", "logit_bias"), (), ()))
    return found


def _list_image_tensors(config: ModelConfig) -> list[Tensor]:
    """Lists the tensors of the image tower and of its projection, if it has one."""
    if isinstance(config.image_tower, ConvNeXtConfig):
        return convnext_tensors(config.image_tower, config.width)
    image, _ = clip_towers(config)
    if image.pooling == "attention":
        return _timm_tensors(image)
    kernel = ("params", "image_projection", "kernel")
    projection = Tensor("visual.proj", kernel, (image.width, config.width), (0, 1))
    return [*_image_tensors(image), projection]


def _image_tensors(config: VitConfig) -> list[Tensor]:
    """Lists the tensors of OpenCLIP's own ViT, without its projection."""
    width, rows = config.width, config.position_grid**2 + 1
    shape = (width, 3, config.patch, config.patch)
    patches, token = (*IMAGE, "patches", "kernel"), (*IMAGE, "class_token")
    positions = (*IMAGE, "position_embeddings")
    return [
        Tensor("visual.conv1.weight", patches, shape, CONVOLUTION),
        Tensor("visual.class_embedding", token, (width,), (0,)),
        Tensor("visual.positional_embedding", positions, (rows, width), (0, 1)),
        *norm("visual.ln_pre", (*IMAGE, "pre_norm"), width),
        *_block_tensors(config, "visual.", IMAGE),
        *norm("visual.ln_post", (*IMAGE, "final_norm"), width),
    ]


def _text_tensors(config: TransformerConfig, prefix: str) -> list[Tensor]:
    """Lists the tensors of OpenCLIP's text transformer, without its projection."""
    tables = {
        "token_embedding.weight": ("word_embeddings", config.vocabulary_size),
        "positional_embedding": ("position_embeddings", config.positions),
    }
    width = config.width
    return [
        *(
            Tensor(f"{prefix}{n}", (*TEXT, own, "embedding"), (rows, width), (0, 1))
            for n, (own, rows) in tables.items()
        ),
        *_block_tensors(config, prefix, TEXT),
        *norm(f"{prefix}ln_final", (*TEXT, "final_norm"), width),
    ]


def _block_tensors(
    config: VitConfig | TransformerConfig, prefix: str, tower: Path
) -> list[Tensor]:
    """Lists the tensors of a tower's blocks; queries, keys and values are one."""
    width, found = config.width, []
    for index, block in enumerate(config.block_names()):
        theirs, ours = f"{prefix}transformer.resblocks.{index}", (*tower, block)
        output = (*ours, "attention_output")
        found += [
            *norm(f"{theirs}.ln_1", (*ours, "attention_norm"), width),
            *joint(f"{theirs}.attn.in_proj_", ours, width, JOINT),
            *dense(f"{theirs}.attn.out_proj", output, width, width),
            *norm(f"{theirs}.ln_2", (*ours, "mlp_norm"), width),
            *mlp(f"{theirs}.mlp", ours, config, ("c_fc", "c_proj")),
        ]
    return found


def _timm_tensors(config: VitConfig) -> list[Tensor]:
    """Lists the tensors of timm's ViT with attention pooling, SigLIP's image tower."""
    width, trunk = config.width, "visual.trunk"
    shape, patches = (width, 3, config.patch, config.patch), (*IMAGE, "patches")
    positions, pool = (*IMAGE, "position_embeddings"), (*IMAGE, "pool")
    name = f"{trunk}.patch_embed.proj"
    found = [
        Tensor(f"{name}.weight", (*patches, "kernel"), shape, CONVOLUTION),
        Tensor(f"{name}.bias", (*patches, "bias"), (width,), (0,)),
        Tensor(
            f"{trunk}.pos_embed",
            positions,
            (1, config.position_grid**2, width),
            (0, 1, 2),
        ),
    ]
    for index, block in enumerate(config.block_names()):
        theirs, ours = f"{trunk}.blocks.{index}", (*IMAGE, block)
        found += [
            *norm(f"{theirs}.norm1", (*ours, "attention_norm"), width),
            *joint(f"{theirs}.attn.qkv.", ours, width, JOINT),
            *dense(f"{theirs}.attn.proj", (*ours, "attention_output"), width, width),
            *norm(f"{theirs}.norm2", (*ours, "mlp_norm"), width),
            *mlp(f"{theirs}.mlp", ours, config, ("fc1", "fc2")),
        ]
    theirs = f"{trunk}.attn_pool"
    return [
        *found,
        *norm(f"{trunk}.norm", (*IMAGE, "final_norm"), width),
        Tensor(f"{theirs}.latent", (*pool, "probe"), (1, 1, width), (0, 1, 2)),
        *dense(f"{theirs}.q", (*pool, "query"), width, width),
        *joint(f"{theirs}.kv.", pool, width, ("key", "value")),
        *dense(f"{theirs}.proj", (*pool, "attention_output"), width, width),
        *norm(f"{theirs}.norm", (*pool, "norm"), width),
        *mlp(f"{theirs}.mlp", pool, config, ("fc1", "fc2")),
    ]
