"""Evaluators on prefixes of the embeddings."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from align_jax.embed.encoder import Encoder
from align_jax.embed.prefix import PrefixEncoder
from align_jax.evaluation.evaluators import Evaluator, PairEvaluator
from align_jax.evaluation.examples import Example


def narrowed(evaluator: Evaluator, width: int) -> Evaluator:
    """Returns an evaluator that scores the first `width` components of embeddings."""
    if isinstance(evaluator, PairEvaluator):
        return _NarrowedPairs(evaluator, width)
    return _Narrowed(evaluator, width)


class _Narrowed:
    """An evaluator that hands a `PrefixEncoder` to another evaluator."""

    Config: type[Any]

    def __init__(self, evaluator: Any, width: int) -> None:
        self.Config = evaluator.Config
        self._evaluator = evaluator
        self._width = width

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Works as `Evaluator.run`."""
        return self._evaluator.run(PrefixEncoder(embedder, self._width))

    def examples(self, embedder: Encoder) -> Mapping[str, Iterator[Example]]:
        """Works as `Evaluator.examples`."""
        return self._evaluator.examples(PrefixEncoder(embedder, self._width))


class _NarrowedPairs(_Narrowed):
    """A `_Narrowed` of matched pairs."""

    def matched_pairs(
        self, embedder: Encoder
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Works as `PairEvaluator.matched_pairs`."""
        return self._evaluator.matched_pairs(PrefixEncoder(embedder, self._width))
