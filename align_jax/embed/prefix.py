"""An encoder whose embeddings are prefixes of another encoder's embeddings."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError


class PrefixEncoder:
    """Cuts embeddings to their first components and scales them to unit length.

    Outputs of the towers and logits stay as they are.
    """

    def __init__(self, encoder: Encoder, width: int) -> None:
        """Wraps an encoder.

        Args:
          encoder: encoder of pictures and texts.
          width: number of components to keep. If embeddings have fewer, a method that
            returns embeddings raises InputError.
        """
        self._encoder = encoder
        self._width = width

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self._encoder.mesh

    def encode_images(self, pictures: Iterable[bytes]) -> np.ndarray:
        """Embeds pictures as (N, width) of unit length."""
        return self._unit(self._encoder.encode_images(pictures))

    def stream_images(self, pictures: Iterable[bytes]) -> Iterator[np.ndarray]:
        """Yields the rows of `encode_images` in order, several at a time."""
        return map(self._unit, self._encoder.stream_images(pictures))

    def image_features(self, pictures: Iterable[bytes]) -> np.ndarray:
        """Works as `Encoder.image_features`."""
        return self._encoder.image_features(pictures)

    def classify_images(self, pictures: Iterable[bytes]) -> np.ndarray:
        """Works as `Encoder.classify_images`."""
        return self._encoder.classify_images(pictures)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts as (N, width) of unit length."""
        return self._unit(self._encoder.encode_texts(texts))

    def project_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts as (N, width), without scaling to unit length."""
        return self._cut(self._encoder.project_texts(texts))

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Works as `Encoder.text_features`."""
        return self._encoder.text_features(texts)

    def _cut(self, embeddings: np.ndarray) -> np.ndarray:
        if embeddings.shape[1] < self._width:
            raise InputError(
                f"width is {self._width}, but the embeddings have"
                f" {embeddings.shape[1]} numbers; wanted at most these"
            )
        return embeddings[:, : self._width]

    def _unit(self, embeddings: np.ndarray) -> np.ndarray:
        cut = self._cut(embeddings)
        length = np.linalg.norm(cut, axis=1, keepdims=True)
        return cut / np.maximum(length, 1e-12)  # as `unit_length` of the model
