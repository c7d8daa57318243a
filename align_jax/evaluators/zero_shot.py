"""Zero-shot classification by prompts (arXiv 2102.05918, section 5.2).

A class's embedding is the mean of the unit embeddings of its prompts, scaled to unit
length again; a picture is given the class of highest cosine similarity.
"""

import dataclasses
import json
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from align_jax.datasets import evaluation_records
from align_jax.embedding import Embedder, class_embeddings
from align_jax.errors import InputError
from align_jax.scores import positive_ranks, recall_at


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig:
    """The labelled pictures and the classes' prompts.

    Attributes:
      directory: dataset in TFDS's layout.
      split: split of the dataset.
      prompts: JSON file {"templates": ["a picture of {}"], "categories": [{"name":
        ..., "prompts": ["an animal", ...]}, ...]}, categories in the labels' order.
      image_feature: name of the encoded picture in a record.
      label_feature: name of the label in a record; -1 leaves the record out.
    """

    directory: str
    split: str
    prompts: str
    image_feature: str = "image"
    label_feature: str = "label"


class ZeroShot:
    """Accuracy against class embeddings made from prompts."""

    Config = ZeroShotConfig

    def __init__(self, config: ZeroShotConfig):
        """Reads pictures and prompts; raises InputError where they do not fit."""
        if not tf.io.gfile.exists(config.prompts):
            raise InputError(f"no prompts at {config.prompts}")
        with tf.io.gfile.GFile(config.prompts) as file:
            described = json.load(file)
        self.classes = [category["name"] for category in described["categories"]]
        self.prompts = [
            [t.format(p) for p in category["prompts"] for t in described["templates"]]
            for category in described["categories"]
        ]
        records = [
            record
            for record in evaluation_records(config.directory, config.split)
            if record[config.label_feature] >= 0
        ]
        self.pictures = [record[config.image_feature] for record in records]
        self.labels = np.array([r[config.label_feature] for r in records])  # (N,)
        if not records or self.labels.max() >= len(self.classes):
            raise InputError(
                f"{config.directory} {config.split} has {len(records)} labelled"
                f" pictures with labels up to {self.labels.max(initial=-1)};"
                f" {config.prompts} describes {len(self.classes)} classes"
            )

    def run(self, embedder: Embedder) -> Iterator[tuple[str, float]]:
        """Yields top-1, top-5, the majority class's share and the counts."""
        images = embedder.encode_images(self.pictures)  # (N, D)
        scores = images @ class_embeddings(embedder, self.prompts).T  # (N, K)
        right = self.labels[:, None] == np.arange(len(self.classes))
        ranks = positive_ranks(scores, right)
        yield "top1", recall_at(ranks, 1)
        yield "top5", recall_at(ranks, 5)
        yield "majority", float(right.mean(0).max())
        yield "queries", len(self.labels)
        yield "candidates", len(self.classes)
