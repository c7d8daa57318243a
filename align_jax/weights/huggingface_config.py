"""Translation of the config of Hugging Face's ALIGN (`AlignModel`), both ways."""

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
)
from align_jax.models.mbconv import SQUEEZE_RATIO

# Defaults of `AlignTextConfig` and `AlignVisionConfig` for fields that config.json
# lacks.
TEXT_DEFAULTS: dict[str, Any] = {
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
VISION_DEFAULTS: dict[str, Any] = {
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
# Fields that our towers support with their default value only.
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

    Fields that the file lacks have the values of `TEXT_DEFAULTS`, `VISION_DEFAULTS`.

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
    text = TEXT_DEFAULTS | (described.get("text_config") or {})
    vision = VISION_DEFAULTS | (described.get("vision_config") or {})
    _check_types(vision, VISION_DEFAULTS, f"{source}: vision_config")
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
    if width != tower.output_width:
        raise InputError(
            f"{source}: projection_dim is {width}, but the image tower's width is"
            f" {tower.output_width}; ALIGN compares them as they are"
        )
    return ModelConfig(
        tower, read_bert_config(text, max_tokens, f"{source}: text_config")
    )


def read_bert_config(
    described: Mapping[str, Any], max_tokens: int, where: str
) -> BertConfig:
    """Translates a BERT config, as `read_model_config` does.

    Args:
      described: fields of the config; `TEXT_DEFAULTS` has those that are absent.
      max_tokens: largest number of tokens in a text; the network may allow fewer.
      where: path of the config, for messages.

    Raises:
      InputError: a field describes a BERT that our tower cannot be.
    """
    text = TEXT_DEFAULTS | dict(described)
    _check_types(text, TEXT_DEFAULTS, where)
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


def align_towers(config: ModelConfig) -> tuple[EfficientNetConfig, BertConfig]:
    """Returns the towers of a model.

    Raises:
      InputError: another image tower than EfficientNet, or text tower than BERT.
    """
    image, text = config.image_tower, config.text_tower
    if isinstance(image, EfficientNetConfig) and isinstance(text, BertConfig):
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
    if config.embedding_size is not None or tower.top_conv:
        raise InputError(
            "an AlignModel compares the pooled last block as it is, but this model has"
            f" embedding_size = {config.embedding_size}, top_conv = {tower.top_conv}"
        )
    if tower.stages:
        raise InputError(
            f"an AlignModel has the paper's stages; this model has {tower.stages}"
        )
    if config.logit_bias_init is not None:
        raise InputError("an AlignModel's logits have no bias, but this model's have")
    return {
        "architectures": ["AlignModel"],
        "model_type": "align",
        "projection_dim": tower.output_width,
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
    vision: Mapping[str, Any], tower: EfficientNetConfig, image_size: int, source: str
) -> str:
    """Translates Hugging Face's `depthwise_padding` into our padding rule.

    The list has the indices of blocks that are padded equally on both sides. Indices of
    blocks with stride 1 have no effect.

    Returns:
      "keras" for an empty list, else "same".

    Raises:
      InputError: the list is neither empty nor that of "same" at an even `image_size`.
    """
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


def _check_types(
    found: Mapping[str, Any], wanted: Mapping[str, Any], where: str
) -> None:
    """Raises InputError if a field has another JSON type than its default."""
    for name, default in wanted.items():
        kind = type(default)
        if not isinstance(found[name], int | float if kind is float else kind):
            raise InputError(
                f"{where}.{name} is {found[name]!r}; wanted {kind.__name__}"
            )


def _check_fixed(
    found: Mapping[str, Any], wanted: Mapping[str, Any], names: Any, where: str
) -> None:
    for name in sorted(names):
        value = found[name]
        if (list(value) if isinstance(value, tuple) else value) != wanted[name]:
            raise InputError(f"{where}.{name} is {value}; ours is {wanted[name]}")
