"""Translation of open_clip_config.json, OpenCLIP's description of a model, both ways.

The towers are OpenCLIP's own ViT and text transformer, a ViT of timm in the form of
SigLIP's image towers, or a ConvNeXt of timm. All other networks are refused by the
field that describes them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.models.convnext import ConvNeXtConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.transformer import TransformerConfig
from align_jax.models.vit import SIZES, VitConfig
from align_jax.ranges import Positive
from align_jax.weights.clip_config import (
    check_positions,
    clip_towers,
    find_form,
    first_temperature,
)
from align_jax.weights.clip_forms import CLIP, FORMS, SIGLIP
from align_jax.weights.described_fields import read_fields
from align_jax.weights.open_clip_convnext import (
    CONVNEXT_OTHERS,
    is_convnext,
    read_convnext,
    write_convnext,
)
from align_jax.weights.open_clip_forms import (
    EPSILON,
    LOGIT_SCALE,
    MODEL_IGNORED,
    MODEL_OTHERS,
    POOLINGS,
    TEXT_IGNORED,
    TEXT_OTHERS,
    TIMM_EPSILON,
    TIMM_NAME,
    TIMM_OTHERS,
    TIMM_RATIOS,
    TIMM_SIZES,
    TIMM_TANH,
    VISION_IGNORED,
    VISION_OTHERS,
    OpenClipTextFields,
    OpenClipVisionFields,
    TimmFields,
)


def read_open_clip(
    described: Mapping[str, Any], max_tokens: int | None, source: str
) -> ModelConfig:
    """Translates the `model_cfg` of an open_clip_config.json.

    The arguments and errors are those of `clip_config.read_model_config`.
    """
    for name in ("vision_cfg", "text_cfg"):
        if not isinstance(described.get(name), dict):
            raise InputError(
                f"{source}: {name} is {described.get(name)!r}; wanted a dict"
            )
    _check_fields(described, MODEL_OTHERS, MODEL_IGNORED, source)
    quick = described.get("quick_gelu") or False
    if not isinstance(quick, bool):
        raise InputError(f"{source}.quick_gelu is {quick!r}; wanted true or false")
    size = described.get("embed_dim")
    where = f"{source}.vision_cfg"
    image = _read_vision(described["vision_cfg"], quick, where)
    text, has_bias = _read_text(
        described["text_cfg"], quick, max_tokens, f"{source}.text_cfg"
    )
    if type(size) is not int:
        raise InputError(f"{source}.embed_dim is {size!r}; wanted a whole number")
    siglip = isinstance(image, VitConfig) and image.pooling == "attention"
    if siglip != has_bias or (siglip and size != image.output_width):
        raise InputError(
            f"{source}: text_cfg.proj_bias is {has_bias} and embed_dim {size}, with"
            f" {'a ViT of timm' if siglip else 'a tower of CLIP'} of width"
            f" {image.output_width}; ours are SigLIP, with a bias and this width, or"
            " CLIP"
        )
    scale = described.get("init_logit_scale")
    fields = {
        "image_tower": dataclasses.asdict(image),
        "text_tower": dataclasses.asdict(text),
        "embedding_size": None if siglip else size,
        "projection_bias": has_bias,
        "temperature_form": "log",
        "temperature_init": first_temperature(
            LOGIT_SCALE if scale is None else scale, f"{source}.init_logit_scale"
        ),
        "logit_bias_init": described.get("init_logit_bias"),
    }
    return read_config(ModelConfig, fields, source)


def _read_vision(
    found: Mapping[str, Any], quick: bool, where: str
) -> VitConfig | ConvNeXtConfig:
    """Translates the `vision_cfg`."""
    name = found.get("timm_model_name")
    is_timm, convnext = name is not None, is_convnext(name)
    others = TIMM_OTHERS if is_timm else VISION_OTHERS
    others = CONVNEXT_OTHERS if convnext else others
    ignored = [*VISION_IGNORED, *(VISION_OTHERS if is_timm else ())]
    _check_fields(found, others, ignored, where, OpenClipVisionFields)
    if isinstance(found.get("layers"), list):
        raise InputError(
            f"{where}.layers is {found['layers']}, of a ResNet; ours is a ViT"
        )
    fields = read_fields(OpenClipVisionFields(), found, where)
    if convnext:
        return read_convnext(found, fields.timm_model_kwargs, where)
    if is_timm:
        size = _read_timm(fields, where)
    else:
        size = {
            "patch": fields.patch_size,
            "width": fields.width,
            "layers": fields.layers,
            "heads": max(1, fields.width // fields.head_width),
            "mlp_width": int(fields.width * fields.mlp_ratio),
            "activation": _read_activation(fields.act_kwargs, quick, where),
            "norm_epsilon": _read_epsilon(fields.norm_kwargs, where),
        }
        size |= FORMS[CLIP].image_fields
    size["position_grid"] = fields.image_size // size["patch"]
    return read_config(VitConfig, size | {"patch_dropout": fields.patch_dropout}, where)


def _read_timm(fields: OpenClipVisionFields, where: str) -> dict[str, Any]:
    """Returns the fields of a SigLIP tower of timm."""
    named = TIMM_NAME.fullmatch(fields.timm_model_name or "")
    if named is None:
        raise InputError(
            f"{where}.timm_model_name is {fields.timm_model_name!r}; of timm's models"
            " ours are SigLIP's, such as 'vit_base_patch16_siglip_224', and ConvNeXts"
        )
    name, patch = named[1], int(named[2])
    width, layers, heads, _ = SIZES[TIMM_SIZES[name]]
    usual = TimmFields(width, layers, heads, patch, TIMM_RATIOS[name])
    changed = dataclasses.asdict(usual) | (fields.timm_model_kwargs or {})
    found = read_config(TimmFields, changed, f"{where}.timm_model_kwargs")
    return {
        "patch": found.patch_size,
        "width": found.embed_dim,
        "layers": found.depth,
        "heads": found.num_heads,
        "mlp_width": int(found.embed_dim * found.mlp_ratio),
        "activation": "gelu_tanh" if (name, patch) in TIMM_TANH else "gelu",
        "norm_epsilon": TIMM_EPSILON,
        **FORMS[SIGLIP].image_fields,
    }


def _read_text(
    found: Mapping[str, Any], quick: bool, max_tokens: int | None, where: str
) -> tuple[TransformerConfig, bool]:
    """Translates the `text_cfg`; also returns whether the projection has a bias."""
    _check_fields(found, TEXT_OTHERS, TEXT_IGNORED, where, OpenClipTextFields)
    fields = read_fields(OpenClipTextFields(), found, where)
    if fields.pool_type not in POOLINGS:
        raise InputError(
            f"{where}.pool_type is {fields.pool_type!r}; ours are {', '.join(POOLINGS)}"
        )
    positions = fields.context_length
    largest = fields.vocab_size - 1 if fields.pool_type == "argmax" else None
    size = {
        "vocabulary_size": fields.vocab_size,
        "positions": positions,
        "max_tokens": positions if max_tokens is None else min(max_tokens, positions),
        "width": fields.width,
        "heads": fields.heads,
        "layers": fields.layers,
        "mlp_width": int(fields.width * fields.mlp_ratio),
        "causal": not fields.no_causal_mask,
        "pooling": POOLINGS[fields.pool_type],
        "end_token": fields.eos_id if fields.pool_type == "eos" else largest,
        "mask_padding": False,
        "activation": _read_activation(fields.act_kwargs, quick, where),
        "norm_epsilon": _read_epsilon(fields.norm_kwargs, where),
    }
    return read_config(TransformerConfig, size, where), fields.proj_bias


def _check_fields(
    found: Mapping[str, Any],
    others: Mapping[str, tuple],
    ignored: list[str],
    where: str,
    cls: Any = None,
) -> None:
    """Raises InputError for a field of another network, or one that is not known."""
    known = {f.name for f in dataclasses.fields(cls)} if cls else set()
    for name, value in found.items():
        if name in others:
            if value not in (None, *others[name]):
                wanted = others[name][0]
                raise InputError(f"{where}.{name} is {value!r}; ours is {wanted!r}")
        elif name not in known and name not in ignored:
            raise InputError(
                f"{where}.{name} is {value!r}, a field that we do not know"
            )


def _read_activation(found: Mapping | None, quick: bool, where: str) -> str:
    """Returns our name of the activation that `act_kwargs` and quick_gelu give."""
    choices = {"{}": "gelu", "{'approximate': 'none'}": "gelu"}
    choices["{'approximate': 'tanh'}"] = "gelu_tanh"
    name = str(dict(found or {}))
    if quick and not found:
        return "quick_gelu"
    if quick or name not in choices:
        raise InputError(
            f"{where}.act_kwargs is {found} and quick_gelu {quick}; ours are none, or"
            " an approximate GELU without quick_gelu"
        )
    return choices[name]


def _read_epsilon(found: Mapping | None, where: str) -> Positive:
    """Returns the epsilon that `norm_kwargs` gives."""
    given = dict(found or {})
    epsilon = given.pop("eps", EPSILON)
    if given or isinstance(epsilon, bool) or not isinstance(epsilon, float):
        raise InputError(f"{where}.norm_kwargs is {found}; wanted only a number eps")
    return epsilon


def write_open_clip(config: ModelConfig, image_size: int) -> dict[str, Any]:
    """Returns the `model_cfg` of a CLIP; the inverse of `read_open_clip`.

    Raises:
      InputError: the model is not a CLIP of OpenCLIP's own towers.
    """
    tower = config.image_tower
    if isinstance(tower, ConvNeXtConfig):
        # The other fields must be those of a CLIP with OpenCLIP's ViT.
        vit = VitConfig(**FORMS[CLIP].image_fields)
        config = dataclasses.replace(config, image_tower=vit)
    image, text = clip_towers(config)
    if image.pooling == "attention":
        raise InputError(
            "OpenCLIP takes a SigLIP's image tower from timm by name; write a"
            " SiglipModel by --format=huggingface instead"
        )
    find_form(dataclasses.replace(config, logit_bias_init=None))
    quick = text.activation == "quick_gelu"
    if isinstance(tower, ConvNeXtConfig):
        vision = write_convnext(tower) | {"image_size": image_size}
    else:
        vision = _write_vision(image, text.activation, image_size)
    texts = _tower_fields(text) | {
        "context_length": text.positions,
        "vocab_size": text.vocabulary_size,
        "heads": text.heads,
    }
    if text.end_token != text.vocabulary_size - 1:
        texts |= {"pool_type": "eos", "eos_id": text.end_token}
    described = {
        "embed_dim": config.width,
        "quick_gelu": quick,
        "init_logit_scale": -math.log(config.temperature_init),
        "vision_cfg": vision,
        "text_cfg": texts,
    }
    if config.logit_bias_init is not None:
        described["init_logit_bias"] = config.logit_bias_init
    return described


def _write_vision(tower: VitConfig, activation: str, image_size: int) -> dict[str, Any]:
    """Returns the `vision_cfg` of OpenCLIP's own ViT.

    Args:
      tower: config of our tower.
      activation: activation of the text tower.
      image_size: side of the pictures in pixels.
    """
    quick = (tower.activation == "quick_gelu", activation == "quick_gelu")
    if quick[0] != quick[1] or tower.width % tower.heads:
        raise InputError(
            "OpenCLIP has one quick_gelu for both towers; this model has"
            f" {tower.activation!r} and {activation!r}"
        )
    check_positions(tower, image_size, "OpenCLIP's ViT")
    return _tower_fields(tower) | {
        "image_size": image_size,
        "patch_size": tower.patch,
        "head_width": tower.width // tower.heads,
    }


def _tower_fields(tower: VitConfig | TransformerConfig) -> dict[str, Any]:
    """Returns the fields that `vision_cfg` and `text_cfg` share."""
    # The float whose product with the width is not below the whole number.
    ratio = math.nextafter(tower.mlp_width / tower.width, math.inf)
    fields: dict[str, Any] = {
        "width": tower.width,
        "layers": tower.layers,
        "mlp_ratio": 4.0 if tower.mlp_width == 4 * tower.width else ratio,
    }
    if tower.norm_epsilon != EPSILON:
        fields["norm_kwargs"] = {"eps": tower.norm_epsilon}
    if tower.activation == "gelu_tanh":
        fields["act_kwargs"] = {"approximate": "tanh"}
    return fields
