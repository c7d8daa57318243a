"""Image-text retrieval: recall at 1, 5 and 10 both ways (arXiv 2102.05918, sec. 5.1).

The split's records hold a picture, its texts and, optionally, a flag `query`. Pictures
and texts of all records are candidates; those of flagged records (all, where there is
no flag) are queries. Equal texts are one candidate.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from align_jax.datasets import evaluation_records
from align_jax.embedding import Embedder
from align_jax.scores import chance_recall, positive_ranks, recall_at

CUTS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """The pairs to retrieve.

    Attributes:
      directory: dataset in TFDS's layout.
      split: split of the dataset.
      image_feature: name of the encoded picture in a record.
      texts_feature: name of the list of texts in a record.
    """

    directory: str
    split: str
    image_feature: str = "image"
    texts_feature: str = "texts"


class Retrieval:
    """Recall of pictures by texts and of texts by pictures."""

    Config = RetrievalConfig

    def __init__(self, config: RetrievalConfig):
        """Reads the split; raises InputError where it is missing or empty."""
        records = evaluation_records(config.directory, config.split)
        self.pictures = [record[config.image_feature] for record in records]
        texts_of = [
            [text.decode() for text in record[config.texts_feature]]
            for record in records
        ]
        self.texts = list(dict.fromkeys(text for texts in texts_of for text in texts))
        column = {text: index for index, text in enumerate(self.texts)}
        self.positives = np.zeros((len(records), len(self.texts)), bool)  # (I, T)
        for row, texts in enumerate(texts_of):
            self.positives[row, [column[text] for text in texts]] = True
        self.image_queries = np.array([r.get("query", True) for r in records], bool)
        self.text_queries = self.positives[self.image_queries].any(0)  # (T,)

    def run(self, embedder: Embedder) -> Iterator[tuple[str, float]]:
        """Yields recalls, their chance levels and the counts behind them."""
        similarity = self.similarity(embedder)  # (I, T)
        directions = (
            ("i2t", similarity, self.positives, self.image_queries),
            ("t2i", similarity.T, self.positives.T, self.text_queries),
        )
        for name, scores, positives, queries in directions:
            ranks = positive_ranks(scores[queries], positives[queries])
            for k in CUTS:
                yield f"{name}_recall@{k}", recall_at(ranks, k)
                yield f"{name}_chance@{k}", chance_recall(positives[queries], k)
            yield f"{name}_queries", int(queries.sum())
            yield f"{name}_candidates", positives.shape[1]

    def similarity(self, embedder: Embedder) -> np.ndarray:
        """Cosine similarity of every picture and text, (I, T)."""
        images = embedder.encode_images(self.pictures)
        return images @ embedder.encode_texts(self.texts).T
