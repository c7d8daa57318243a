"""Translation of the config.json of Hugging Face's CLIP and SigLIP models, both ways.

SigLIP 2's models of one resolution have the classes and configs of SigLIP.
`Siglip2Model` is read for square pictures of its grid of patches: there it computes
what `SiglipModel` does. Its processor for pictures of any shape is refused elsewhere.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.transformer import TransformerConfig
from align_jax.models.vit import VitConfig
from align_jax.weights.clip_forms import (
    ACTIVATIONS,
    CLIP,
    FIXED,
    FORMS,
    OTHERS,
    OUR_ACTIVATIONS,
    SIGLIP,
    SIGLIP2,
    VISION_FIXED,
    ClipTextFields,
    ClipVisionFields,
)
from align_jax.weights.described_fields import check_others, read_fields

PROJECTION = 512  # default of projection_dim
LOGIT_SCALE = 2.6592  # default of logit_scale_init_value, about ln(1 / 0.07)
FIRST_BIAS = -10.0  # of SigLIP's logits (arXiv 2303.15343, section 3.2)
FIRST_TEMPERATURE = 1.0 / 10.0  # of SigLIP, from the same section
# In configs with this eos_token_id, a CLIP takes the token with the largest id.
LARGEST_TOKEN = 2


def read_model_config(
    described: Mapping[str, Any], max_tokens: int | None, source: str
) -> ModelConfig:
    """Translates the config.json of a `CLIPModel`, `SiglipModel` or `Siglip2Model`.

    The scaling of pixels and the id of padding are not in the file; ours have their
    defaults.

    Args:
      described: content of the file; its `model_type` is a key of `FORMS`.
      max_tokens: the tokenizer's limit of tokens in a text, or None; the network may
        allow fewer.
      source: path of the file, for messages.

    Raises:
      InputError: a field describes a network that our towers cannot be; the message
        names the field.
    """
    kind = described["model_type"]
    check_others(described, {"quantization_config": None}, source)
    vision, where = _part(described, "vision_config", source)
    image_tower = read_image_tower(kind, vision, where)
    text, where = _part(described, "text_config", source)
    text_tower = read_text_tower(kind, text, max_tokens, where)
    fields = dict(FORMS[kind].model_fields)
    if kind == CLIP:
        scale = described.get("logit_scale_init_value")
        width = described.get("projection_dim")
        fields["embedding_size"] = PROJECTION if width is None else width
        fields["temperature_init"] = first_temperature(
            LOGIT_SCALE if scale is None else scale, f"{source}: logit_scale_init_value"
        )
    else:
        width = text.get("projection_size")
        if (text_tower.width if width is None else width) != image_tower.width:
            raise InputError(
                f"{where}.projection_size is {width}; wanted {image_tower.width},"
                " the width of the image tower, whose output is the embedding"
            )
        fields["logit_bias_init"] = FIRST_BIAS
        fields["temperature_init"] = FIRST_TEMPERATURE
    fields |= {"image_tower": dataclasses.asdict(image_tower)}
    fields |= {"text_tower": dataclasses.asdict(text_tower)}
    return read_config(ModelConfig, fields | {"temperature_form": "log"}, source)


def read_image_tower(kind: str, described: Mapping[str, Any], where: str) -> VitConfig:
    """Translates the config of an image tower; see `read_model_config`.

    Args:
      kind: a key of `FORMS`.
      described: the tower's fields.
      where: path of the fields, for messages.
    """
    form = FORMS[kind]
    check_others(described, OTHERS, where)
    found = read_fields(form.vision, described, where, fixed=VISION_FIXED)
    if kind == SIGLIP2:
        grid = math.isqrt(found.num_patches)
        if grid**2 != found.num_patches:
            raise InputError(
                f"{where}.num_patches is {found.num_patches}; wanted a square number,"
                " such as 256, the positions of a square picture"
            )
    elif found.image_size < found.patch_size:
        raise InputError(
            f"{where}.image_size is {found.image_size}; wanted at least patch_size,"
            f" {found.patch_size}"
        )
    else:
        grid = found.image_size // found.patch_size
    fields = {
        "patch": found.patch_size,
        "position_grid": grid,
        **_shared_fields(found, where),
        **form.image_fields,
    }
    return read_config(VitConfig, fields, where)


def read_text_tower(
    kind: str, described: Mapping[str, Any], max_tokens: int | None, where: str
) -> TransformerConfig:
    """Translates the config of a text tower; see `read_model_config`."""
    form = FORMS[kind]
    check_others(described, OTHERS, where)
    found = read_fields(form.text, described, where, fixed=FIXED)
    positions = found.max_position_embeddings
    fields = {
        "vocabulary_size": found.vocab_size,
        "positions": positions,
        "max_tokens": positions if max_tokens is None else min(max_tokens, positions),
        "mask_padding": False,  # a causal tower does not see it either
        **_shared_fields(found, where),
        **form.text_fields,
    }
    if kind == CLIP:
        largest = found.eos_token_id == LARGEST_TOKEN
        fields["end_token"] = found.vocab_size - 1 if largest else found.eos_token_id
    return read_config(TransformerConfig, fields, where)


def clip_towers(config: ModelConfig) -> tuple[VitConfig, TransformerConfig]:
    """Returns the towers of a model.

    Raises:
      InputError: another image tower than a ViT, or text tower than a transformer.
    """
    image, text = config.image_tower, config.text_tower
    if isinstance(image, VitConfig) and isinstance(text, TransformerConfig):
        return image, text
    raise InputError(
        "a CLIPModel or SiglipModel has the towers 'vit' and 'transformer'; this model"
        f" has {image.kind!r} and {text.kind!r}"
    )


def find_form(config: ModelConfig) -> str:
    """Returns the key in `FORMS` of the class that has the towers of a model.

    A SigLIP is a `SiglipModel`, not a `Siglip2Model`.

    Raises:
      InputError: a field has a value that none of these models has; the message names
        the field.
    """
    image, text = clip_towers(config)
    kind = SIGLIP if image.pooling == "attention" else CLIP
    form = FORMS[kind]
    parts = {
        "model.image_tower": (image, form.image_fields),
        "model.text_tower": (text, form.text_fields),
        "model": (config, form.model_fields),
    }
    for path, (part, wanted) in parts.items():
        for name, value in wanted.items():
            if (found := getattr(part, name)) != value:
                raise InputError(
                    f"a {form.architecture} has {path}.{name} = {value!r}; this model"
                    f" has {found!r}"
                )
    prefix, needed = config.embedding_prefix, "embedding_size"
    if kind == SIGLIP:
        needed = "logit_bias_init"
    if prefix or getattr(config, needed) is None:
        raise InputError(
            f"a {form.architecture} has model.{needed} and no embedding_prefix; this"
            f" model has {getattr(config, needed)} and {prefix}"
        )
    return kind


def write_model_config(
    config: ModelConfig, image_size: int, kind: str
) -> dict[str, Any]:
    """Returns a config.json; the inverse of `read_model_config`.

    Args:
      config: config of our model, which `find_form` accepts.
      image_size: side of the pictures in pixels.
      kind: a key of `FORMS`.

    Raises:
      InputError: the positions are not those of pictures of `image_size`.
    """
    image, text = clip_towers(config)
    check_positions(image, image_size, f"a {FORMS[kind].architecture}")
    vision_config = _tower_fields(image) | {
        "model_type": f"{kind}_vision_model",
        "patch_size": image.patch,
        "num_channels": 3,
    }
    text_config = _tower_fields(text) | {
        "model_type": f"{kind}_text_model",
        "vocab_size": text.vocabulary_size,
        "max_position_embeddings": text.positions,
        "pad_token_id": text.pad_token,
    }
    if text.end_token is not None:
        text_config["eos_token_id"] = text.end_token
    if kind == SIGLIP2:
        vision_config["num_patches"] = image.position_grid**2
    else:
        vision_config["image_size"] = image_size
    described: dict[str, Any] = {
        "architectures": [FORMS[kind].architecture],
        "model_type": kind,
    }
    if kind == CLIP:
        described["logit_scale_init_value"] = -math.log(config.temperature_init)
        for part in (described, vision_config, text_config):
            part["projection_dim"] = config.embedding_size
    else:
        text_config["projection_size"] = config.width
    return described | {"text_config": text_config, "vision_config": vision_config}


def _part(
    described: Mapping[str, Any], name: str, source: str
) -> tuple[Mapping[str, Any], str]:
    """Returns the fields of one tower, and their path for messages.

    Early files of CLIP repeat the fields that are set in `text_config_dict` and
    `vision_config_dict`, which count, as in transformers.
    """
    for key in (f"{name}_dict", name):
        found = described.get(key)
        if found is not None:
            if not isinstance(found, dict):
                raise InputError(f"{source}: {key} is {found!r}; wanted a dict")
            return found, f"{source}: {key}"
    return {}, f"{source}: {name}"


def _shared_fields(
    found: ClipTextFields | ClipVisionFields, where: str
) -> dict[str, Any]:
    """Returns the fields that image and text towers of ours share."""
    if found.hidden_act not in ACTIVATIONS:
        raise InputError(
            f"{where}.hidden_act is {found.hidden_act!r}; ours are"
            f" {', '.join(ACTIVATIONS)}"
        )
    return {
        "width": found.hidden_size,
        "layers": found.num_hidden_layers,
        "heads": found.num_attention_heads,
        "mlp_width": found.intermediate_size,
        "activation": ACTIVATIONS[found.hidden_act],
        "norm_epsilon": found.layer_norm_eps,
    }


def _tower_fields(tower: VitConfig | TransformerConfig) -> dict[str, Any]:
    """Returns the fields that image and text towers of theirs share."""
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": OUR_ACTIVATIONS[tower.activation],
        "layer_norm_eps": tower.norm_epsilon,
        "attention_dropout": 0.0,
    }


def check_positions(tower: VitConfig, image_size: int, model: str) -> None:
    """Raises InputError if pictures have more or fewer patches than positions.

    Args:
      tower: config of our tower.
      image_size: side of the pictures in pixels.
      model: name of the other codebase's model, for the message.
    """
    patches = image_size // tower.patch
    if patches != tower.position_grid:
        raise InputError(
            f"pictures have {image_size} pixels, {patches} patches a side, but"
            f" model.image_tower.position_grid is {tower.position_grid}; {model} has as"
            " many positions as patches"
        )


def first_temperature(scale: Any, where: str) -> float:
    """Returns the initial temperature of a first logit scale, which is a logarithm.

    Args:
      scale: a JSON value.
      where: path of the value, for messages.

    Raises:
      InputError: the value is no number from -20 to 20.
    """
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not is_number or not -20 <= scale <= 20:
        raise InputError(f"{where} is {scale!r}; wanted a number from -20 to 20")
    return math.exp(-scale)
