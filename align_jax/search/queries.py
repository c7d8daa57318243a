"""Queries that add and subtract pictures and texts (arXiv 2102.05918, section 7)."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from align_jax.errors import InputError
from align_jax.pictures import Picture

# The paper's best weights for a query of a text and a picture; "1:1 also works".
TEXT_WEIGHT = 2.0
IMAGE_WEIGHT = 1.0
CANCELLED = 1e-3  # share of the weights' sum below which a query has no direction


class QueryEncoder(Protocol):
    """Encodes N picture files, or N texts, as (N, D) of unit length."""

    def encode_images(self, images: Sequence[bytes]) -> np.ndarray:
        """Embeds pictures."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts."""


class TolerantEncoder(QueryEncoder, Protocol):
    """A `QueryEncoder` that can report unreadable pictures instead of raising."""

    def encode_images(
        self, images: Sequence[Picture], unreadable: dict[int, str] | None = None
    ) -> np.ndarray:
        """Embeds pictures; see `Model.encode_images`."""


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of a query: a text, a picture or an embedding.

    Attributes:
      content: the text (str), the picture's file (bytes) or the embedding (D,).
      weight: factor of the embedding; a negative one avoids similar pictures. None
        means `TEXT_WEIGHT` for a text and `IMAGE_WEIGHT` for a picture or an embedding.
    """

    content: str | bytes | np.ndarray
    weight: float | None = None

    @property
    def factor(self) -> float:
        """The weight, with None replaced by `TEXT_WEIGHT` or `IMAGE_WEIGHT`."""
        if self.weight is not None:
            return self.weight
        return TEXT_WEIGHT if isinstance(self.content, str) else IMAGE_WEIGHT


def query_embedding(model: QueryEncoder, terms: Sequence[Term]) -> np.ndarray:
    """Sums the terms' embeddings by weight and normalises; returns (D,) float32.

    q = sum_i w_i e_i / |sum_i w_i e_i|, each e_i of unit length.

    Raises:
      InputError: no term has a weight other than 0, the terms cancel each other, or
        the model cannot read a picture.
    """
    terms = [term for term in terms if term.factor]
    if not terms:
        raise InputError("the query is empty; wanted a text or a picture")
    texts = [term.content for term in terms if isinstance(term.content, str)]
    images = [term.content for term in terms if isinstance(term.content, bytes)]
    encoded_texts = iter(model.encode_texts(texts) if texts else ())
    encoded_images = iter(model.encode_images(images) if images else ())

    def embedding_of(term: Term) -> np.ndarray:
        if isinstance(term.content, str):
            return next(encoded_texts)
        if isinstance(term.content, bytes):
            return next(encoded_images)
        return np.asarray(term.content, np.float32)

    factors = np.array([term.factor for term in terms], np.float32)
    total = factors @ np.stack([embedding_of(term) for term in terms])  # (D,)
    length = float(np.linalg.norm(total))
    if not length > CANCELLED * np.abs(factors).sum():
        raise InputError("the terms of the query cancel each other; change a weight")
    return (total / length).astype(np.float32)
