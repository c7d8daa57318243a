"""Formats in which `align_jax.convert` writes the weights of a model."""

from collections.abc import Callable, Mapping
from functools import partial

from align_jax.models.dual_encoder import ModelConfig
from align_jax.weights.clip_folder import write_clip, write_open_clip
from align_jax.weights.clip_forms import SIGLIP2
from align_jax.weights.encoders import write_onnx, write_stablehlo
from align_jax.weights.folder import Weights, write_weights
from align_jax.weights.huggingface_folder import write_align

ALIGN_JAX, HUGGINGFACE = "align_jax", "huggingface"


def write_huggingface(
    weights: Weights, directory: str, texts: Mapping[str, str] | None = None
) -> None:
    """Writes a new folder that transformers loads, in the class that has the towers.

    A ViT with a text transformer is a `CLIPModel` or `SiglipModel`, EfficientNet with
    BERT an `AlignModel`. The arguments and errors are those of `write_clip` and
    `write_align`.
    """
    config = weights.config
    is_vit = isinstance(config, ModelConfig) and config.image_tower.kind == "vit"
    (write_clip if is_vit else write_align)(weights, directory, texts)


# Format -> function (weights, folder).
WRITERS: dict[str, Callable[[Weights, str], None]] = {
    ALIGN_JAX: write_weights,
    HUGGINGFACE: write_huggingface,
    "siglip2": partial(write_clip, kind=SIGLIP2),
    "open_clip": write_open_clip,
    "onnx": write_onnx,
    "stablehlo": write_stablehlo,
}
