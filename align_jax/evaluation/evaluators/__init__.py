"""Evaluators: each runs a model on a dataset and yields (name, value) pairs.

A new evaluator is one file, with a class that fulfils `Evaluator`, and one line in
`EVALUATORS`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from align_jax.embed.encoder import Encoder
from align_jax.evaluation.evaluators.classification import Classification
from align_jax.evaluation.evaluators.crisscrossed import Crisscrossed
from align_jax.evaluation.evaluators.few_shot import FewShot
from align_jax.evaluation.evaluators.languages import Languages
from align_jax.evaluation.evaluators.linear_probe import LinearProbe
from align_jax.evaluation.evaluators.neighbours import Neighbours
from align_jax.evaluation.evaluators.retrieval import Retrieval
from align_jax.evaluation.evaluators.selection import Selection
from align_jax.evaluation.evaluators.wds import Wds
from align_jax.evaluation.evaluators.word_similarity import WordSimilarity
from align_jax.evaluation.evaluators.zero_shot import ZeroShot
from align_jax.evaluation.examples import Example


class Evaluator(Protocol):
    """Scores a model on a dataset.

    Attributes:
      Config: dataclass of the evaluator's fields in `config.evaluators`, without
        "kind".
    """

    Config: type[Any]

    def __init__(self, config: Any) -> None:
        """Opens the dataset.

        Args:
          config: instance of `Config`.

        Raises:
          InputError: the dataset is missing, or it is not the expected one.
        """

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields (name, value) of every score and of the values beside them.

        Tables and curves show all values as scores, except those whose last word,
        between "_" and "@", is in `align_jax.runs.results.BESIDE`. The main score is
        `mean_recall`, or else the first one.

        In the table, the count beside `t2i_recall@5` is the first that exists of
        `t2i_queries`, `t2i_pairs`, `queries` and `i2t_queries`. Its chance level is
        `t2i_chance@5`; that of `top1` is `majority`.
        """

    def examples(self, embedder: Encoder) -> Mapping[str, Iterator[Example]]:
        """Returns {title: some queries with the model's answers} for the report.

        It returns {} if there is nothing to show.
        """


@runtime_checkable
class PairEvaluator(Protocol):
    """An evaluator of matched pairs, whose similarities the report plots, too."""

    def matched_pairs(
        self, embedder: Encoder
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns embeddings of pictures (I, D) and texts (T, D), and the pairs (P, 2).

        A pair is the row of the picture and the row of a text that matches it.
        """


EVALUATORS: dict[str, type[Evaluator]] = {
    "classification": Classification,
    "crisscrossed": Crisscrossed,
    "few_shot": FewShot,
    "languages": Languages,
    "linear_probe": LinearProbe,
    "neighbours": Neighbours,
    "retrieval": Retrieval,
    "selection": Selection,
    "wds": Wds,
    "word_similarity": WordSimilarity,
    "zero_shot": ZeroShot,
}

# Kinds that score features of a tower or a classifier's logits.
WITHOUT_EMBEDDINGS = ("classification", "few_shot", "linear_probe", "word_similarity")
