"""What evaluators ask of a model."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from jax.sharding import Mesh


class Encoder(Protocol):
    """Gives evaluators all that a model makes of pictures' files and of texts.

    A dual encoder has no head and a classifier no text tower: a method that wants one
    raises InputError. The arrays are float32 and the same on every process.
    """

    @property
    def mesh(self) -> Mesh:
        """The devices, on which scores are computed, too."""

    def encode_images(self, pictures: Iterable[bytes], /) -> np.ndarray:
        """Embeds pictures (N) as (N, D) of unit length."""

    def stream_images(self, pictures: Iterable[bytes], /) -> Iterator[np.ndarray]:
        """Yields the rows of `encode_images` in order, some at a time."""

    def image_features(self, pictures: Iterable[bytes], /) -> np.ndarray:
        """Image tower's output before any projection, (N, W)."""

    def classify_images(self, pictures: Iterable[bytes], /) -> np.ndarray:
        """Logits of a classifier, (N, K)."""

    def encode_texts(self, texts: Sequence[str], /) -> np.ndarray:
        """Embeds texts (N) as (N, D) of unit length."""

    def project_texts(self, texts: Sequence[str], /) -> np.ndarray:
        """Embeds texts (N) as (N, D), before they are scaled to unit length."""

    def text_features(self, texts: Sequence[str], /) -> np.ndarray:
        """Text tower's output before its projection, (N, W)."""
