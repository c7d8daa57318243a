"""Opens weights of any supported format."""

import os
from collections.abc import Callable

from align_jax import places
from align_jax.config import CHECKPOINTS, CONFIG_FILE
from align_jax.errors import InputError
from align_jax.weights.clip_folder import (
    OPEN_CLIP_CONFIG,
    TOWERS,
    read_clip,
    read_clip_tower,
    read_open_clip,
)
from align_jax.weights.clip_forms import FORMS
from align_jax.weights.efficientnet_checkpoint import read_keras, read_tensorflow
from align_jax.weights.folder import (
    MODEL_FILE,
    Weights,
    WeightsConfig,
    read_weights,
)
from align_jax.weights.huggingface_folder import read_align, read_bert
from align_jax.weights.tensor_files import has_tensors

HUGGING_FACE: dict[str, Callable[[str], Weights[WeightsConfig]]] = {
    "align": read_align,
    "bert": read_bert,
    **dict.fromkeys(FORMS, read_clip),
    **dict.fromkeys(TOWERS, read_clip_tower),
}


def open_weights(source: str) -> Weights[WeightsConfig]:
    """Reads a model or a tower.

    Args:
      source: a folder that `write_weights` wrote, the workdir of a training run (for
        its newest whole checkpoint), one of its checkpoints (RUN/checkpoints/STEP), a
        Hugging Face folder of ALIGN, CLIP, SigLIP, one tower of these two, or BERT, an
        OpenCLIP folder, a Keras EfficientNet's .h5 file, or the prefix of a TensorFlow
        EfficientNet checkpoint.

    Raises:
      InputError: the source is none of these, or it is incomplete.
    """
    place = places.resolve(source)
    if place.endswith(".h5") and places.exists(place):
        return read_keras(place)
    if places.exists(f"{place}.index"):
        return read_tensorflow(place)
    if places.exists(os.path.join(place, MODEL_FILE)):
        return read_weights(place)
    described_by = os.path.join(place, CONFIG_FILE)
    if places.exists(os.path.join(place, OPEN_CLIP_CONFIG)):
        # A folder in both forms has the tensors of both, or of OpenCLIP's only.
        if not (places.exists(described_by) and has_tensors(place)):
            return read_open_clip(place)
    if places.exists(described_by):
        described = places.read_object(described_by)
        if "run" in described:
            return _read_run(place)
        kind = described.get("model_type")
        if isinstance(kind, str) and kind in HUGGING_FACE:
            return HUGGING_FACE[kind](place)
        raise InputError(
            f"{described_by} has model_type {kind!r}; wanted one of"
            f" {', '.join(HUGGING_FACE)}"
        )
    if find_run(place):
        return _read_run(place)
    found = "a folder without any" if places.is_folder(place) else "no folder"
    raise InputError(
        f"{source} is {found}: wanted one with {MODEL_FILE}, {CONFIG_FILE} or"
        f" {OPEN_CLIP_CONFIG}, a Keras .h5 file or the prefix of a TensorFlow"
        " checkpoint"
    )


def find_run(place: str) -> str | None:
    """Returns the RUN of a path RUN/checkpoints/STEP; None for any other path."""
    folder, step = os.path.split(place.rstrip("/"))
    run, name = os.path.split(folder)
    return run if name == CHECKPOINTS and step.isdigit() else None


def _read_run(place: str) -> Weights[WeightsConfig]:
    from align_jax.weights.run_weights import read_run  # imports Orbax, a second's work

    return read_run(place)
