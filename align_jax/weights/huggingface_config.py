"""Translation of the config of Hugging Face's ALIGN (`AlignModel`), both ways."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.models.bert import HEAD_WIDTH, TOKEN_TYPES, BertConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.efficientnet import (
    STAGES,
    STEM_CHANNELS,
    EfficientNetConfig,
    expand_stages,
)
from align_jax.models.mbconv import SQUEEZE_RATIO
from align_jax.ranges import Count, Natural, ProperShare, Range, Share
from align_jax.weights.described_fields import (
    Layers,
    check_fixed,
    check_others,
    read_fields,
)

# A config beyond these is damaged; the largest published networks are far below.
Scale = Annotated[float, Range(above=0, most=100)]


@dataclasses.dataclass(frozen=True)
class TextFields:
    """Fields of `AlignTextConfig` and of a BERT's config, with their defaults there."""

    vocab_size: Count = 30522
    hidden_size: Count = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: ProperShare = 0.1
    max_position_embeddings: Annotated[int, Range(least=3)] = 512
    type_vocab_size: int = TOKEN_TYPES
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0


@dataclasses.dataclass(frozen=True)
class VisionFields:
    """Fields of `AlignVisionConfig`, with their defaults there."""

    num_channels: int = 3
    width_coefficient: Scale = 2.0
    depth_coefficient: Scale = 3.1
    depth_divisor: int = 8
    kernel_sizes: tuple[int, ...] = tuple(stage[1] for stage in STAGES)
    in_channels: tuple[int, ...] = (STEM_CHANNELS, *(row[4] for row in STAGES[:-1]))
    out_channels: tuple[int, ...] = tuple(stage[4] for stage in STAGES)
    depthwise_padding: tuple[Natural, ...] = ()
    strides: tuple[int, ...] = tuple(stage[2] for stage in STAGES)
    num_block_repeats: tuple[int, ...] = tuple(stage[0] for stage in STAGES)
    expand_ratios: tuple[int, ...] = tuple(stage[3] for stage in STAGES)
    squeeze_expansion_ratio: float = SQUEEZE_RATIO
    hidden_act: str = "swish"
    hidden_dim: Count = 2560
    pooling_type: str = "mean"
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: Share = 0.99
    drop_connect_rate: Share = 0.2


# Fields of our model of which an `AlignModel` has the default.
FIXED = ("logit_bias_init", "projection_bias", "pixel_mean", "pixel_std")
# Fields that our towers support with their default value only.
TEXT_FIXED = ("hidden_act", "type_vocab_size", "layer_norm_eps", "pad_token_id")
VISION_FIXED = (
    "num_channels",
    "depth_divisor",
    "kernel_sizes",
    "in_channels",
    "out_channels",
    "strides",
    "num_block_repeats",
    "expand_ratios",
    "squeeze_expansion_ratio",
    "hidden_act",
    "pooling_type",
    "batch_norm_eps",
)
# Fields of other networks of the same classes, with the value that leaves ours.
TEXT_OTHERS = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}
WHOLE_OTHERS = {"quantization_config": None}
PROJECTION = 640  # default of projection_dim
STRIDE = 32  # of the image tower's last grid


def read_model_config(
    described: Mapping[str, Any], image_size: int, max_tokens: int, source: str
) -> ModelConfig:
    """Translates the config.json of an `AlignModel`.

    Fields that are absent or null have the defaults of `TextFields`, `VisionFields`.

    Args:
      described: content of the file.
      image_size: side of the pictures in pixels; the meaning of the file's padding
        depends on it.
      max_tokens: largest number of tokens in a text; the network may allow fewer.
      source: path of the file, for messages.

    Raises:
      InputError: a field describes a network that our towers cannot be; the message
        names the field.
    """
    for name in ("text_config", "vision_config"):
        if not isinstance(described.get(name), dict | None):
            raise InputError(f"{source}: {name} is {described[name]!r}; wanted a dict")
    vision_fields = described.get("vision_config") or {}
    text_fields = described.get("text_config") or {}
    where = f"{source}: vision_config"
    check_others(described, WHOLE_OTHERS, source)
    vision = read_fields(VisionFields(), vision_fields, where, fixed=VISION_FIXED)
    rates = {
        "width": vision.width_coefficient,
        "depth": vision.depth_coefficient,
        "drop_rate": vision.drop_connect_rate,
        "batch_norm_momentum": vision.batch_norm_momentum,
    }
    tower = read_config(EfficientNetConfig, rates, where)
    padding = _read_padding(vision.depthwise_padding, tower, image_size, source)
    tower = dataclasses.replace(tower, padding=padding)
    if vision.hidden_dim < (grid := -(-image_size // STRIDE)):
        raise InputError(
            f"{where}.hidden_dim is {vision.hidden_dim}, below {grid}, the side of the"
            " last grid; ours takes the mean of the whole grid"
        )
    width = described.get("projection_dim")
    if (PROJECTION if width is None else width) != tower.output_width:
        raise InputError(
            f"{source}: projection_dim is {width}, but the image tower's width is"
            f" {tower.output_width}; ALIGN compares them as they are"
        )
    where = f"{source}: text_config"
    return ModelConfig(tower, read_bert_config(text_fields, max_tokens, where))


def read_bert_config(
    described: Mapping[str, Any], max_tokens: int, where: str
) -> BertConfig:
    """Translates a BERT config, as `read_model_config` does.

    Args:
      described: fields of the config; `TextFields` has those that are absent.
      max_tokens: largest number of tokens in a text; the network may allow fewer.
      where: path of the config, for messages.

    Raises:
      InputError: a field describes a BERT that our tower cannot be.
    """
    check_others(described, TEXT_OTHERS, where)
    text = read_fields(TextFields(), described, where, fixed=TEXT_FIXED)
    hidden = text.hidden_size
    if hidden % HEAD_WIDTH:
        raise InputError(
            f"{where}.hidden_size is {hidden}; wanted a multiple of {HEAD_WIDTH}, the"
            " width of an attention head"
        )
    derived = {
        "num_attention_heads": hidden // HEAD_WIDTH,
        "intermediate_size": 4 * hidden,
    }
    check_fixed(text, derived, where)
    fields = {
        "vocabulary_size": text.vocab_size,
        "max_tokens": min(max_tokens, text.max_position_embeddings),
        "positions": text.max_position_embeddings,
        "layers": text.num_hidden_layers,
        "hidden": hidden,
        "dropout": text.hidden_dropout_prob,
    }
    return read_config(BertConfig, fields, where)


def align_towers(config: ModelConfig) -> tuple[EfficientNetConfig, BertConfig]:
    """Returns the towers of a model.

    Raises:
      InputError: another image tower than EfficientNet, or text tower than BERT.
    """
    image, text = config.image_tower, config.text_tower
    # EfficientNetV2's config is a subclass.
    if isinstance(image, EfficientNetConfig) and isinstance(text, BertConfig):
        if image.kind == "efficientnet":
            return image, text
    raise InputError(
        "an AlignModel has the towers 'efficientnet' and 'bert'; this model has"
        f" {image.kind!r} and {text.kind!r}"
    )


def write_model_config(config: ModelConfig, image_size: int) -> dict[str, Any]:
    """Returns the config.json of an `AlignModel`; the inverse of `read_model_config`.

    Args:
      config: config of our model.
      image_size: side of the pictures in pixels.

    Raises:
      InputError: the model has a part that an `AlignModel` cannot have, or a padding
        that it cannot have at this `image_size`.
    """
    tower, text = align_towers(config)
    if config.width != tower.output_width or config.embedding_size or tower.top_conv:
        raise InputError(
            "an AlignModel compares the pooled last block as it is, but this model has"
            f" embedding_size = {config.embedding_size}, top_conv = {tower.top_conv},"
            f" and embeddings of {config.width} numbers"
        )
    if tower.stages:
        raise InputError(
            f"an AlignModel has the paper's stages; this model has {tower.stages}"
        )
    if other := [f for f in FIXED if getattr(config, f) != getattr(ModelConfig, f)]:
        raise InputError(
            f"an AlignModel has the default of {', '.join(other)}; this model has not"
        )
    return {
        "architectures": ["AlignModel"],
        "model_type": "align",
        "projection_dim": tower.output_width,
        "temperature_init_value": config.temperature_init,
        "text_config": dataclasses.asdict(TextFields())
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
        "vision_config": dataclasses.asdict(VisionFields())
        | {
            "model_type": "align_vision_model",
            "image_size": image_size,
            "width_coefficient": tower.width,
            "depth_coefficient": tower.depth,
            "depthwise_padding": _write_padding(tower, image_size),
            "batch_norm_momentum": tower.batch_norm_momentum,
            "drop_connect_rate": tower.drop_rate,
            # Hugging Face reads this as the side of the window of the last pooling. It
            # must cover the whole grid.
            "hidden_dim": max(tower.output_width, image_size),
        },
    }


def _square_blocks(config: EfficientNetConfig, image_size: int) -> list[int]:
    """Returns the indices of blocks that padding "same" pads equally on both sides.

    They are the blocks with stride 2 and an input with an odd side.
    """
    side, found = -(-image_size // 2), []
    blocks = [block for stage in expand_stages(config) for block in stage]
    for index, block in enumerate(blocks):
        if block.stride == 2 and side % 2:
            found.append(index)
        side = -(-side // block.stride)
    return found


def _read_padding(
    listed: tuple[int, ...], tower: EfficientNetConfig, image_size: int, source: str
) -> str:
    """Translates Hugging Face's `depthwise_padding` into our padding rule.

    The list has the indices of blocks that are padded equally on both sides. Indices of
    blocks with stride 1 have no effect.

    Returns:
      "keras" for an empty list, else "same".

    Raises:
      InputError: the list is neither empty nor that of "same" at an even `image_size`.
    """
    if not listed:
        return "keras"
    wanted = _square_blocks(tower, image_size)
    blocks = [block for stage in expand_stages(tower) for block in stage]
    effective = [i for i in listed if i < len(blocks) and blocks[i].stride == 2]
    if image_size % 2 or effective != wanted:
        raise InputError(
            f"{source}: vision_config.depthwise_padding is {[*listed]}; for"
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
