"""Nearest-neighbour classification, ALIGN's ImageNet KNN (arXiv 2102.05918, section 6).

A query is right at k where one of its k nearest pictures of the index, by cosine of the
pictures' embeddings, has its label.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from align_jax.datasets import LabelledPictures
from align_jax.embedding import Embedder
from align_jax.ranking import nearest

CUTS = (1, 5)


@dataclasses.dataclass(frozen=True)
class NeighboursConfig:
    """The queries and the pictures among which neighbours are sought.

    Attributes:
      directory: dataset in TFDS's layout.
      split: of the queries.
      index_split: of the neighbours, which are embedded on the way and never all held.
      expected_queries: another count is refused; 0 takes any.
      expected_index: likewise.
      image_feature: name of the encoded picture in a record.
      label_feature: name of the label in a record; -1 leaves the record out.
    """

    directory: str
    split: str = "validation"
    index_split: str = "train"
    expected_queries: int = 0
    expected_index: int = 0
    image_feature: str = "image"
    label_feature: str = "label"


class Neighbours:
    """Recall at 1 and 5 of the label by the nearest pictures."""

    Config = NeighboursConfig

    def __init__(self, config: NeighboursConfig):
        """Opens both splits; raises InputError where one is missing or another."""
        features = (config.image_feature, config.label_feature)
        splits = (
            (config.split, config.expected_queries),
            (config.index_split, config.expected_index),
        )
        self.queries, self.index = (
            LabelledPictures(config.directory, split, *features, expected)
            for split, expected in splits
        )

    def run(self, embedder: Embedder) -> Iterator[tuple[str, float]]:
        """Yields recalls and the counts."""
        asked, held = [], []
        queries = embedder.encode_images(_pictures(self.queries, asked))  # (Q, D)
        index = embedder.stream_images(_pictures(self.index, held))
        _, places = nearest(queries, index, max(CUTS), embedder.mesh)  # (Q, k)
        same = np.array(held)[places] == np.array(asked)[:, None]
        for k in CUTS:
            yield f"recall@{k}", float(same[:, :k].any(1).mean())
        yield "queries", len(asked)
        yield "candidates", len(held)


def _pictures(data: LabelledPictures, labels: list[int]) -> Iterator[bytes]:
    """The pictures; adds each one's label to `labels`."""
    for picture, label in data:
        labels.append(label)
        yield picture
