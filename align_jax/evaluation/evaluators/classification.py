"""Accuracy of a trained classifier on labelled pictures."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError
from align_jax.evaluation.examples import Example, Item, Side, make_examples, show_each
from align_jax.evaluation.scores import mean_per_class, recall_at
from align_jax.input.evaluation_records import LabelledSplits
from align_jax.ranges import Natural


@dataclasses.dataclass(frozen=True)
class ClassificationConfig(LabelledSplits):
    """The labelled pictures.

    Attributes:
      directory: dataset in TFDS's layout.
      split: test split, or an expression of TFDS such as "train[90%:]".
      expected_pictures: number of records that `split` must have; 0 for any.
      image_feature: name of the encoded picture in a record.
      label_feature: name of the label in a record; a record with label < 0 is skipped.
    """

    directory: str
    split: str
    expected_pictures: Natural = 0
    image_feature: str = "image"
    label_feature: str = "label"


class Predictions(NamedTuple):
    """Logits (N, K) of the pictures, labels (N,) and their ranks (N,), from 0."""

    logits: np.ndarray
    labels: np.ndarray
    ranks: np.ndarray


class Classification:
    """Top-1 and top-5 accuracy, and the mean of the classes' accuracies.

    Attributes:
      found: result of `find` in the last run; None before it.
    """

    Config = ClassificationConfig

    def __init__(self, config: ClassificationConfig) -> None:
        """Opens the split.

        Raises:
          InputError: the split or a feature is missing, or the size is unexpected.
        """
        self.data = config.open(config.split, config.expected_pictures)
        self.found: Predictions | None = None

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields accuracies in [0, 1], then a baseline and counts.

        `majority` is the share of the most frequent label, `queries` the number of
        pictures and `candidates` the number of classes.
        """
        self.found = self.find(embedder)
        logits, labels, ranks = self.found
        yield "top1", recall_at(ranks, 1)
        yield "top5", recall_at(ranks, 5)
        yield "mean_per_class", mean_per_class(ranks == 0, labels)
        yield "majority", float(np.bincount(labels).max() / len(labels))
        yield "queries", len(labels)
        yield "candidates", logits.shape[1]

    def find(self, embedder: Encoder) -> Predictions:
        """Classifies all labelled pictures; ties count against the classifier.

        Raises:
          InputError: the model is no classifier, no picture has a label, or a label is
            not below the classifier's number of classes.
          FloatingPointError: a logit is not finite.
        """
        labels: list[int] = []
        logits = embedder.classify_images(self.data.collect(labels))
        truth = np.array(labels)
        if truth.max() >= logits.shape[1]:
            raise InputError(
                f"a picture has the label {truth.max()}; the classifier has"
                f" {logits.shape[1]} classes"
            )
        if not np.isfinite(logits).all():
            raise FloatingPointError("logits of pictures are not finite")
        own = logits[np.arange(len(truth)), truth]
        return Predictions(logits, truth, (logits >= own[:, None]).sum(1) - 1)

    def examples(self, embedder: Encoder) -> dict[str, Iterator[Example]]:
        """Returns {title: examples} of the last run; before any run, of `find`."""
        logits, labels, ranks = self.found or self.find(embedder)
        known = dict(enumerate(self.data.names or ()))

        def show_class(label: int) -> Item:
            return Item(known.get(int(label), str(label)))

        def show_pictures(rows: Sequence[int]) -> dict[int, Item]:
            shown = self.data.some(rows)
            return {r: Item(show_class(labels[r]).text, shown[r]) for r in rows}

        pictures = Side(logits, show_pictures)
        # Logits times the identity are the logits, so they serve as embeddings here.
        own = np.eye(logits.shape[1], dtype=np.float32)
        of_classes = Side(own, show_each(show_class))
        pairs = np.stack([np.arange(len(labels)), labels], 1)
        title = "Pictures and their best classes"
        return {title: make_examples(pictures, of_classes, pairs, ranks)}
