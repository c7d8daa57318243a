"""The interface through which evaluators use a model."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from jax.sharding import Mesh

from align_jax.errors import InputError


class UnreadableError(InputError):
    """A picture cannot be read; the message begins with "picture" and its index.

    Attributes:
      index: index of the picture among those that the encoder was given.
      reason: rest of the message.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"picture {index}{reason}")
        self.index = index
        self.reason = reason


class Encoder(Protocol):
    """Encodes N pictures or texts, none or more, with a dual encoder or a classifier.

    A picture is given as the bytes of its file. A dual encoder has no classification
    head and a classifier has no text tower: a method that needs the missing part raises
    InputError, as does a picture that cannot be read. The arrays are float32 and the
    same on every process. D is the width of the embeddings, W that of a tower, and K
    the number of classes.
    """

    @property
    def mesh(self) -> Mesh:
        """The devices; evaluators compute scores on them, too."""

    def encode_images(self, pictures: Iterable[bytes], /) -> np.ndarray:
        """Embeds pictures as (N, D) of unit length.

        A classifier returns its image features, scaled to unit length.
        """

    def stream_images(self, pictures: Iterable[bytes], /) -> Iterator[np.ndarray]:
        """Yields the rows of `encode_images` in order, several at a time."""

    def image_features(self, pictures: Iterable[bytes], /) -> np.ndarray:
        """Returns the image tower's output before any projection, (N, W)."""

    def classify_images(self, pictures: Iterable[bytes], /) -> np.ndarray:
        """Returns the logits of a classifier, (N, K)."""

    def encode_texts(self, texts: Sequence[str], /) -> np.ndarray:
        """Embeds texts as (N, D) of unit length."""

    def project_texts(self, texts: Sequence[str], /) -> np.ndarray:
        """Embeds texts as (N, D), without scaling to unit length."""

    def text_features(self, texts: Sequence[str], /) -> np.ndarray:
        """Returns the text tower's output before its projection, (N, W)."""
