"""Accuracy of a classifier's own head on labelled pictures."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError
from align_jax.evaluation.examples import Example, Item, Side, make_examples, show_each
from align_jax.evaluation.scores import mean_per_class, recall_at
from align_jax.input.evaluation_records import LabelledPictures


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """The labelled pictures.

    Attributes:
      directory: dataset in TFDS's layout.
      split: of the test, or an expression of TFDS's such as "train[90%:]".
      expected_pictures: another count is refused; 0 takes any.
      image_feature: name of the encoded picture in a record.
      label_feature: name of the label in a record; -1 leaves the record out.
    """

    directory: str
    split: str
    expected_pictures: int = 0
    image_feature: str = "image"
    label_feature: str = "label"


class Predictions(NamedTuple):
    """What a classifier makes of the pictures: logits (N, K), labels and ranks (N,)."""

    logits: np.ndarray
    labels: np.ndarray
    ranks: np.ndarray


class Classification:
    """Top-1 and top-5 accuracy and the mean over the classes.

    Attributes:
      found: what `find` gave to the last run; None before it.
    """

    Config = ClassificationConfig

    def __init__(self, config: ClassificationConfig):
        """Opens the pictures; raises InputError where they are missing or others."""
        self.data = LabelledPictures(
            config.directory,
            config.split,
            config.image_feature,
            config.label_feature,
            config.expected_pictures,
        )
        self.found: Predictions | None = None

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields accuracies, the majority class's share and the counts."""
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
          InputError: a label is none of the classifier's classes.
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
        """Pictures of the last run or, before it, of one that is made."""
        logits, labels, ranks = self.found or self.find(embedder)
        known = dict(enumerate(self.data.names or ()))

        def show_class(label: int) -> Item:
            return Item(known.get(int(label), str(label)))

        def show_pictures(rows: Sequence[int]) -> dict[int, Item]:
            shown = self.data.some(rows)
            return {r: Item(show_class(labels[r]).text, shown[r]) for r in rows}

        pictures = Side(logits, show_pictures)
        # The product of logits and these is the logits.
        own = np.eye(logits.shape[1], dtype=np.float32)
        of_classes = Side(own, show_each(show_class))
        pairs = np.stack([np.arange(len(labels)), labels], 1)
        title = "Pictures and their best classes"
        return {title: make_examples(pictures, of_classes, pairs, ranks)}
