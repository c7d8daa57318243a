"""Towers that `benchmarks.step` knows by name, as configs of our model."""

import argparse
import itertools
from typing import Any

from align_jax.models import bert, convnext, efficientnet_v2, transformer, vit
from align_jax.models.bert import BertConfig
from align_jax.models.convnext import ConvNeXtConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.efficientnet import (
    VARIANTS,
    EfficientNetConfig,
    expand_stages,
    round_channels,
)
from align_jax.models.efficientnet_v2 import EfficientNetV2Config
from align_jax.models.transformer import TransformerConfig
from align_jax.models.vit import VitConfig
from align_jax.weights.clip_forms import CLIP, FORMS, SIGLIP

HEAD_WIDTH = 64
BERT_VOCABULARY, CLIP_VOCABULARY, SIGLIP_VOCABULARY = 30_522, 49_408, 32_000
# OpenCLIP's and SigLIP's.
NUMERICS = {
    CLIP: {"activation": "gelu", "norm_epsilon": 1e-5},
    SIGLIP: {"activation": "gelu_tanh", "norm_epsilon": 1e-6},
}


def make_model(flags: argparse.Namespace) -> ModelConfig:
    """Returns the model of the flags `image` and `text`."""
    image, text = image_tower(flags), text_tower(flags)
    fields: dict[str, Any] = {}
    if isinstance(text, TransformerConfig):
        fields = {"temperature_form": "log", **FORMS[_form(flags)].model_fields}
        if fields.get("embedding_size", 0) is not None:
            fields["embedding_size"] = text.width
    return ModelConfig(image, text, dtype=flags.dtype, **fields)


def image_tower(flags: argparse.Namespace) -> Any:
    """Returns the config of the tower that `flags.image` names.

    Names are such as "b5" and "2.0x3.1" (EfficientNet's variants and multipliers),
    "v2_s", "convnext_t", "vit_b/16", and "vit_4x192/16" for 4 blocks of width 192.
    """
    family, _, size = flags.image.partition("_")
    execution = {"scan": flags.scan, "rematerialise": flags.rematerialise}
    kernels = {"kernels": flags.kernels}
    if family == "vit":
        size, _, patch = size.partition("/")
        grid = flags.image_size // int(patch)
        form = _form(flags)
        fields = _blocks(size, vit.SIZES) | FORMS[form].image_fields | NUMERICS[form]
        fields |= {"patch": int(patch), "position_grid": grid}
        fields["attention"] = flags.attention
        return VitConfig(**fields, **execution)
    if family == "convnext":
        return ConvNeXtConfig(convnext.SIZES[size], **execution)
    if family == "v2":
        stages = efficientnet_v2.SIZES[size]
        return EfficientNetV2Config(stages=stages, **execution, **kernels)
    return EfficientNetConfig(*image_multipliers(flags), **execution, **kernels)


def text_tower(flags: argparse.Namespace) -> Any:
    """Returns the config of the tower that `flags.text` names.

    Names are such as "base" and "12x768" (BERT), "clip_b", "siglip_b", and "clip_4x256"
    for a tower of CLIP with 4 blocks of width 256.
    """
    tokens = flags.tokens
    rematerialise = flags.rematerialise != "none"
    family, _, size = flags.text.rpartition("_")
    if not family:
        layers, hidden = text_size(flags)
        return BertConfig(
            BERT_VOCABULARY,
            tokens,
            layers=layers,
            hidden=hidden,
            scan=flags.scan,
            rematerialise=rematerialise,
        )
    form = _form(flags)
    words = SIGLIP_VOCABULARY if form == SIGLIP else CLIP_VOCABULARY
    name = flags.text if flags.text in transformer.SIZES else size
    fields = _blocks(name, transformer.SIZES) | FORMS[form].text_fields | NUMERICS[form]
    if form == CLIP:
        fields |= {"end_token": words - 1, "mask_padding": False}
    return TransformerConfig(
        words,
        tokens,
        positions=tokens,
        attention=flags.attention,
        scan=flags.scan,
        rematerialise="blocks" if rematerialise else "none",
        **fields,
    )


def _form(flags: argparse.Namespace) -> str:
    """Returns the form of transformer towers: SigLIP's if the text tower has it."""
    return SIGLIP if flags.text.startswith("siglip") else CLIP


def _blocks(size: str, sizes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns the fields of a published size, or of LAYERSxWIDTH."""
    if size in sizes:
        width, layers, heads, mlp_width = sizes[size]
    else:
        layers, width = map(int, size.split("x"))
        heads, mlp_width = width // HEAD_WIDTH, 4 * width
    return {"width": width, "layers": layers, "heads": heads, "mlp_width": mlp_width}


def image_multipliers(flags: argparse.Namespace) -> tuple[float, float]:
    """Returns the width and depth multipliers of an EfficientNet."""
    if flags.image in VARIANTS:
        return VARIANTS[flags.image]
    width, depth = map(float, flags.image.split("x"))
    return width, depth


def text_size(flags: argparse.Namespace) -> tuple[int, int]:
    """Returns the layers and the hidden width of a BERT."""
    if flags.text in bert.SIZES:
        return bert.SIZES[flags.text]
    layers, hidden = map(int, flags.text.split("x"))
    return layers, hidden


def count_outputs(config: Any, image_size: int) -> int:
    """Counts the outputs of an image tower's convolutions and products for a picture.

    Scores of attention are left out: they need not be written.
    """
    if isinstance(config, VitConfig):
        patches = (image_size // config.patch) ** 2
        tokens = config.leading_tokens + patches
        # Queries, keys, values, attention, its last layer, and the MLP's second one.
        block = 6 * config.width + config.mlp_width
        return patches * config.width + tokens * config.layers * block
    if isinstance(config, ConvNeXtConfig):
        found, side = 0, image_size // config.patch
        for blocks, channels in config.stages:
            found += side**2 * channels * (1 + 6 * blocks)
            side //= 2
        return found
    side = -(-image_size // 2)
    found = side**2 * round_channels(config.stem_channels, config.width)
    for block in itertools.chain(*expand_stages(config)):
        if not block.fused and block.expansion != 1:
            found += side**2 * block.expanded
        side = -(-side // block.stride)
        if not block.fused or block.expansion != 1:
            found += side**2 * block.expanded
        found += side**2 * block.channels_out
    return found
