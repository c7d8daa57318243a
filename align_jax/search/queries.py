"""Queries of pictures and texts, added and subtracted (arXiv 2102.05918, section 7)."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from align_jax.errors import InputError
from align_jax.pictures import Picture

# What the paper found best where both are in one query; "1:1 also works".
TEXT_WEIGHT = 2.0
IMAGE_WEIGHT = 1.0
CANCELLED = 1e-3  # of the weights' sum: what is left of a query without a direction


class QueryEncoder(Protocol):
    """Encodes the files of pictures and texts as (N, D) of unit length."""

    def encode_images(self, images: Sequence[bytes]) -> np.ndarray:
        """Embeds pictures."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts."""


class TolerantEncoder(QueryEncoder, Protocol):
    """As `QueryEncoder`, and reports pictures that cannot be read."""

    def encode_images(
        self, images: Sequence[Picture], unreadable: dict[int, str] | None = None
    ) -> np.ndarray:
        """Embeds pictures; see `Model.encode_images`."""


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of a query: a text, a picture, or an embedding that is there already.

    Attributes:
      content: the text (str), the picture's file (bytes) or its embedding (D,).
      weight: below 0 to look for pictures that are not like it; None for the paper's.
    """

    content: str | bytes | np.ndarray
    weight: float | None = None

    @property
    def factor(self) -> float:
        """The weight."""
        if self.weight is not None:
            return self.weight
        return TEXT_WEIGHT if isinstance(self.content, str) else IMAGE_WEIGHT


def query_embedding(model: QueryEncoder, terms: Sequence[Term]) -> np.ndarray:
    """Sums the terms' embeddings by weight; (D,) float32 of unit length.

    q = sum_i w_i e_i / |sum_i w_i e_i|, each e_i of unit length.

    Raises:
      InputError: no term has a weight other than 0, or the terms cancel each other.
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
