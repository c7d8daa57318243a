"""Nearest-neighbour classification, ALIGN's ImageNet KNN (arXiv 2102.05918, section 6).

A query is right at k if one of the k pictures of the index with the highest cosine has
the query's label.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from align_jax.embed.encoder import Encoder
from align_jax.evaluation.examples import Answer, Example, Item, choose_queries
from align_jax.evaluation.ranking import nearest
from align_jax.input.evaluation_records import LabelledSplits
from align_jax.ranges import Natural

CUTS = (1, 5)


@dataclasses.dataclass(frozen=True)
class NeighboursConfig(LabelledSplits):
    """The queries, and the index of pictures that is searched for neighbours.

    Attributes:
      directory: dataset in TFDS's layout.
      split: split of the queries.
      index_split: split of the index; its embeddings are streamed and never all in
        memory.
      expected_queries: number of records that `split` must have; 0 for any.
      expected_index: number of records that `index_split` must have; 0 for any.
      image_feature: name of the encoded picture in a record.
      label_feature: name of the label in a record; a record with label < 0 is skipped.
    """

    directory: str
    split: str = "validation"
    index_split: str = "train"
    expected_queries: Natural = 0
    expected_index: Natural = 0
    image_feature: str = "image"
    label_feature: str = "label"


class NearestPictures(NamedTuple):
    """The nearest pictures of the queries.

    Attributes:
      labels: (Q,) labels of the queries.
      near_labels: (Q, k) labels of the nearest pictures, best first.
      indices: (Q, k) indices of the nearest pictures among the index's labelled ones.
      cosines: (Q, k) cosines of the nearest pictures.
      candidates: number of labelled pictures in the index.
    """

    labels: np.ndarray
    near_labels: np.ndarray
    indices: np.ndarray
    cosines: np.ndarray
    candidates: int


class Neighbours:
    """Recall at 1 and 5 of the query's label among the nearest pictures.

    Attributes:
      found: result of `find` in the last run; None before it.
    """

    Config = NeighboursConfig

    def __init__(self, config: NeighboursConfig) -> None:
        """Opens both splits.

        Raises:
          InputError: a split or a feature is missing, or a size is unexpected.
        """
        self.found: NearestPictures | None = None
        self.queries = config.open(config.split, config.expected_queries)
        self.index = config.open(config.index_split, config.expected_index)

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields recalls in [0, 1], `queries`, and `candidates` (size of the index)."""
        self.found = self.find(embedder)
        same = self.found.near_labels == self.found.labels[:, None]
        for k in CUTS:
            yield f"recall@{k}", float(same[:, :k].any(1).mean())
        yield "queries", len(same)
        yield "candidates", self.found.candidates

    def find(self, embedder: Encoder) -> NearestPictures:
        """Embeds the queries, then streams the index and keeps the nearest pictures.

        Raises:
          InputError: no query or no picture of the index has a label.
          ValueError: the index has fewer labelled pictures than the largest of `CUTS`.
        """
        asked: list[int] = []
        held: list[int] = []
        queries = embedder.encode_images(self.queries.collect(asked))  # (Q, D)
        index = embedder.stream_images(self.index.collect(held))
        cosines, indices = nearest(queries, index, max(CUTS), embedder.mesh)  # (Q, k)
        labels, near_labels = np.array(asked), np.array(held)[indices]
        return NearestPictures(labels, near_labels, indices, cosines, len(held))

    def examples(self, embedder: Encoder) -> dict[str, Iterator[Example]]:
        """Returns {title: examples} of the last run; before any run, of `find`."""
        found = self.found or self.find(embedder)
        return {"Pictures and the nearest ones": self._examples(found)}

    def _examples(self, found: NearestPictures) -> Iterator[Example]:
        same = found.near_labels == found.labels[:, None]
        first = np.where(same.any(1), same.argmax(1), same.shape[1])
        chosen = choose_queries(np.ones(len(same), bool), first)
        rows = [row for _, row in chosen]
        asked = self.queries.some(rows)
        near = self.index.some(found.indices[rows].ravel())
        for why, row in chosen:
            answers = []
            for column, index in enumerate(found.indices[row].tolist()):
                item = Item(self._name(found.near_labels[row, column]), near[index])
                score, right = found.cosines[row, column], same[row, column]
                answers.append(Answer(item, float(score), bool(right)))
            query = Item(self._name(found.labels[row]), asked[row])
            yield Example(why, query, answers, None, None)

    def _name(self, label: int) -> str:
        """Returns the name of a label, or its number if the dataset has no names."""
        return self.queries.names[label] if self.queries.names else str(label)
