"""Preprocessing of pictures in open_clip_config.json, both ways."""

from typing import Any

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.input.preprocess import PreprocessConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.weights.picture_settings import (
    CLIP_MEAN,
    CLIP_STD,
    PictureSettings,
    read_colours,
)

# OpenCLIP's names, with ours.
INTERPOLATIONS = {"bicubic": "bicubic", "bilinear": "pil"}
RESIZES = {"shortest": "shortest", "squash": "squash"}
DEFAULTS: dict[str, Any] = {
    "mean": CLIP_MEAN,
    "std": CLIP_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
# Fields that have no effect on ours: the size is the network's, and only the mode
# "longest" fills.
IGNORED = ("size", "mode", "fill_color")


def read_open_clip_pictures(found: Any, size: Any, source: str) -> PictureSettings:
    """Translates the `preprocess_cfg`.

    Args:
      found: content of that field; None for the defaults.
      size: side of the network's pictures in pixels.
      source: path of the file, for messages.

    Raises:
      InputError: a setting that ours cannot be; the message names the field.
    """
    found, where = {} if found is None else found, f"{source}: preprocess_cfg"
    if not isinstance(found, dict):
        raise InputError(f"{where} is {found!r}; wanted a dict")
    if unknown := [n for n in found if n not in DEFAULTS and n not in IGNORED]:
        raise InputError(f"{where}.{unknown[0]} is a field that we do not know")
    fields = DEFAULTS | {n: v for n, v in found.items() if v is not None}
    for name, choices in (("interpolation", INTERPOLATIONS), ("resize_mode", RESIZES)):
        if not isinstance(fields[name], str) or fields[name] not in choices:
            raise InputError(
                f"{where}.{name} is {fields[name]!r}; ours are {', '.join(choices)}"
            )
    pixels = {}
    for name in ("mean", "std"):
        numbers = read_colours(fields[name])
        if numbers is None or (name == "std" and min(numbers) <= 0):
            raise InputError(
                f"{where}.{name} is {fields[name]!r}; wanted three numbers up to 1"
            )
        pixels[name] = numbers
    preprocess = {
        "resize": size,
        "image_size": size,
        "resampling": INTERPOLATIONS[fields["interpolation"]],
        "evaluation_resize": RESIZES[fields["resize_mode"]],
    }
    return PictureSettings(
        read_config(PreprocessConfig, preprocess, f"{source}: vision_cfg.image_size"),
        pixels["mean"],
        pixels["std"],
    )


def write_open_clip_pictures(
    config: ModelConfig, preprocess: PreprocessConfig
) -> dict[str, Any]:
    """Returns a `preprocess_cfg`; the inverse of `read_open_clip_pictures`.

    Raises:
      InputError: pictures are cropped, which OpenCLIP does to no square.
    """
    if preprocess.resize != preprocess.image_size:
        raise InputError(
            f"OpenCLIP resizes pictures to image_size; this model has preprocess.resize"
            f" {preprocess.resize} and image_size {preprocess.image_size}"
        )
    cubic = preprocess.resampling == "bicubic"
    return {
        "mean": [*config.pixel_mean],
        "std": [*config.pixel_std],
        "interpolation": "bicubic" if cubic else "bilinear",
        "resize_mode": preprocess.evaluation_resize,
    }
