"""Preprocessing of pictures in the folders of others' CLIP and SigLIP models."""

import dataclasses
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from align_jax import places
from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.input.preprocess import PreprocessConfig
from align_jax.models.dual_encoder import HALVES, ModelConfig, PixelMean, PixelStd
from align_jax.weights.clip_forms import CLIP, FORMS

# Pillow's codes for resampling, with ours. "tf" has none; it is written as bilinear.
RESAMPLINGS = {2: "pil", 3: "bicubic"}
OUR_RESAMPLINGS = {"pil": 2, "tf": 2, "bicubic": 3}
TOLERANCE = 1e-5  # relative, of rescale_factor
LEVELS = 1 / 255  # the rescale_factor of all these models

# Means and deviations of the pixels on which OpenAI trained CLIP
# (https://github.com/openai/CLIP, clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Fields of the image processors with their defaults.
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": LEVELS,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    "SiglipImageProcessor": {
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 3,
        "do_center_crop": False,
        "crop_size": None,
        "do_rescale": True,
        "rescale_factor": LEVELS,
        "do_normalize": True,
        "image_mean": HALVES,
        "image_std": HALVES,
    },
}
# Other names of these classes.
CLASSES = {
    f"{name}{suffix}": name for name in DEFAULTS for suffix in ("", "Fast", "Pil")
} | {"CLIPFeatureExtractor": "CLIPImageProcessor"}
NAFLEX = "Siglip2ImageProcessor"


@dataclasses.dataclass(frozen=True)
class PictureSettings:
    """Preprocessing of a model's pictures.

    Attributes:
      preprocess: sizes and resampling.
      mean: mean of the pixels of each colour, from 0 to 1.
      std: deviation of the pixels of each colour.
    """

    preprocess: PreprocessConfig
    mean: PixelMean
    std: PixelStd

    def set_pixels(self, config: ModelConfig) -> ModelConfig:
        """Returns a model that scales pixels by the mean and the deviation."""
        return dataclasses.replace(config, pixel_mean=self.mean, pixel_std=self.std)


def read_pictures(folder: pathlib.Path, kind: str) -> PictureSettings:
    """Translates preprocessor_config.json, or processor_config.json's image part.

    Args:
      folder: folder of the model.
      kind: a key of `clip_forms.FORMS`, which names the class of a processor that the
        file does not name.

    Raises:
      InputError: a setting that ours cannot be; the message names the field.
    """
    path = folder / "preprocessor_config.json"
    if path.exists():
        described = places.read_object(path)
    else:
        path = folder / "processor_config.json"
        described = places.read_object(path, {"image_processor": dict})
        described = described["image_processor"]
    own = "CLIPImageProcessor" if kind == CLIP else "SiglipImageProcessor"
    named = described.get("image_processor_type")
    named = named or described.get("feature_extractor_type") or own
    if isinstance(named, str) and named.startswith(NAFLEX):
        raise InputError(
            f"{path}: image_processor_type is {named!r}, which cuts pictures of any"
            " shape into patches (NaFlex); ours are squares, as in SigLIP 2's models of"
            " one resolution, such as google/siglip2-base-patch16-224"
        )
    if named not in CLASSES:
        raise InputError(
            f"{path}: image_processor_type is {named!r}; wanted one of"
            f" {', '.join(CLASSES)}"
        )
    given = {name: value for name, value in described.items() if value is not None}
    return _read_fields(DEFAULTS[CLASSES[named]] | given, str(path))


def _read_fields(found: Mapping[str, Any], path: str) -> PictureSettings:
    """Translates the fields of an image processor, none of which is absent."""
    _check_fields(found, path)
    sizes = _read_sizes(found, path)
    preprocess = read_config(PreprocessConfig, sizes, f"{path}: size and crop_size")
    pixels = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]
    if found["do_normalize"]:
        for index, name in enumerate(("image_mean", "image_std")):
            if (numbers := read_colours(found[name])) is None:
                raise _refusal(found, name, "three numbers from 0 to 1", path)
            pixels[index] = numbers
    if min(pixels[1]) <= 0:
        raise _refusal(found, "image_std", "three numbers above 0, up to 1", path)
    return PictureSettings(preprocess, pixels[0], pixels[1])


def _refusal(found: Mapping[str, Any], name: str, wanted: Any, path: str) -> InputError:
    return InputError(f"{path}: {name} is {found[name]!r}; wanted {wanted}")


def _check_fields(found: Mapping[str, Any], path: str) -> None:
    """Raises InputError if a field is not one of ours, apart from sizes and colours."""
    refuse = partial(_refusal, found, path=path)
    for name in ("do_resize", "do_rescale"):
        if found[name] is not True:
            raise refuse(name, True)
    for name in ("do_center_crop", "do_normalize"):
        if not isinstance(found[name], bool):
            raise refuse(name, "true or false")
    for name in ("do_pad", "rescale_offset", "use_square_size"):
        if found.get(name):
            raise refuse(name, False)
    factor = found["rescale_factor"]
    if not isinstance(factor, int | float) or abs(255 * factor - 1) > TOLERANCE:
        raise refuse("rescale_factor", f"{LEVELS}, which is 1 / 255")
    resample = found["resample"]
    if type(resample) is not int or resample not in RESAMPLINGS:
        raise refuse("resample", "2 (bilinear) or 3 (bicubic)")


def _read_sizes(found: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Returns the fields of `PreprocessConfig`, whose values are not checked."""
    refuse = partial(_refusal, found, path=path)
    size, shortest = found["size"], False
    if isinstance(size, dict) and {*size} == {"shortest_edge"}:
        size, shortest = size["shortest_edge"], True
    elif not isinstance(size, dict):
        shortest = True  # a number is the shorter side, as in the first CLIP files
    resize = _read_side(size)
    if resize is None:
        raise refuse("size", "a square of height and width, or a shortest_edge")
    image_size: int | None = resize
    if found["do_center_crop"]:
        image_size = _read_side(found["crop_size"])
        if image_size is None:
            raise refuse("crop_size", "a number, or a square of height and width")
    elif shortest:
        raise refuse("do_center_crop", "true with a size of the shorter side")
    return {
        "resize": resize,
        "image_size": image_size,
        "resampling": RESAMPLINGS[found["resample"]],
        "evaluation_resize": "shortest" if shortest else "squash",
    }


def _read_side(size: Any) -> int | None:
    """Returns the side of a square, given as a number or a dict; None if it is none."""
    if isinstance(size, dict):
        if {*size} != {"height", "width"} or size["height"] != size["width"]:
            return None
        size = size["height"]
    return size if type(size) is int and size > 0 else None


def read_colours(found: Any) -> tuple[float, float, float] | None:
    """Returns three numbers from 0 to 1, or None if a JSON value is anything else."""
    if not isinstance(found, list | tuple) or len(found) != 3:
        return None
    for number in found:
        if isinstance(number, bool) or not isinstance(number, int | float):
            return None
        if not 0 <= number <= 1:
            return None
    return float(found[0]), float(found[1]), float(found[2])


def write_pictures(
    config: ModelConfig, preprocess: PreprocessConfig, kind: str
) -> dict[str, Any]:
    """Returns a preprocessor_config.json; the inverse of `read_pictures`.

    Args:
      config: config of the model, with the scaling of its pixels.
      preprocess: sizes and resampling.
      kind: a key of `clip_forms.FORMS`.

    Raises:
      InputError: SigLIP's processor cannot do this preprocessing.
    """
    square = {"height": preprocess.resize, "width": preprocess.resize}
    crop = {"height": preprocess.image_size, "width": preprocess.image_size}
    shortest = preprocess.evaluation_resize == "shortest"
    fields: dict[str, Any] = {
        "do_resize": True,
        "size": {"shortest_edge": preprocess.resize} if shortest else square,
        "resample": OUR_RESAMPLINGS[preprocess.resampling],
        "do_rescale": True,
        "rescale_factor": LEVELS,
        "do_normalize": True,
        "image_mean": [*config.pixel_mean],
        "image_std": [*config.pixel_std],
        "do_convert_rgb": True,
    }
    if kind == CLIP:
        fields |= {"do_center_crop": True, "crop_size": crop}
        fields |= {"image_processor_type": "CLIPImageProcessor"}
        return fields | {"processor_class": "CLIPProcessor"}
    if shortest or square != crop:
        raise InputError(
            f"a {FORMS[kind].architecture}'s processor resizes pictures to a square and"
            f" does not crop them; this model has preprocess.resize {preprocess.resize}"
            f" ({preprocess.evaluation_resize}) and image_size {preprocess.image_size}"
        )
    fields |= {"image_processor_type": "SiglipImageProcessor"}
    return fields | {"processor_class": "SiglipProcessor"}
