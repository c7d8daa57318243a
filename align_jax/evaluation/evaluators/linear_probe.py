"""Linear probe: logistic regression on a frozen image tower's features.

The protocol of CLIP's linear probes (arXiv 2103.00020, appendix A.3): the features are
taken before any projection, without scaling or augmentation. The penalty is chosen on
the validation split. The final fit is on training and validation pictures together.
The regression begins and ends as scikit-learn's, which these probes use.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from align_jax.embed.encoder import Encoder
from align_jax.evaluation.examples import Example
from align_jax.evaluation.linear_classifier import (
    LogisticRegression,
    classify,
    search_penalty,
)
from align_jax.evaluation.scores import mean_per_class
from align_jax.input.evaluation_records import LabelledPictures, LabelledSplits
from align_jax.ranges import Natural


@dataclasses.dataclass(frozen=True)
class LinearProbeConfig(LabelledSplits):
    """The labelled pictures.

    Attributes:
      directory: dataset in TFDS's layout.
      split: test split.
      train: training split, or an expression of TFDS such as "train[:90%]".
      validation: split or expression on which the penalty is chosen.
      expected_pictures: number of records that `split` must have; 0 for any.
      image_feature: name of the encoded picture in a record.
      label_feature: name of the label in a record; a record with label < 0 is skipped.
    """

    directory: str
    split: str
    train: str = "train"
    validation: str = "validation"
    expected_pictures: Natural = 0
    image_feature: str = "image"
    label_feature: str = "label"


class LinearProbe:
    """Accuracy of a linear classifier on the image tower's features."""

    Config = LinearProbeConfig

    def __init__(self, config: LinearProbeConfig) -> None:
        """Opens the splits.

        Raises:
          InputError: a split or a feature is missing, or a size is unexpected.
        """
        self.parts = [
            config.open(config.train),
            config.open(config.validation),
            config.open(config.split, config.expected_pictures),
        ]

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields accuracies in [0, 1], and values that describe the fit and the data.

        `validation_top1` is of the fit on training pictures only. `penalty_exponent` is
        the logarithm of the penalty to base 10, `majority` the share of the most
        frequent test label, and `candidates` the number of classes.
        """
        train, validation, test = (read_features(p, embedder) for p in self.parts)
        count = 1 + max(int(part[1].max()) for part in (train, validation, test))
        features, labels = train
        probe = LogisticRegression(features, labels, count, embedder.mesh)

        def accuracy(penalty: float) -> float:
            found = classify(probe.fit(penalty), validation[0]).argmax(1)
            return float(np.mean(found == validation[1]))

        penalty = search_penalty(accuracy)
        features = np.concatenate([train[0], validation[0]])
        labels = np.concatenate([train[1], validation[1]])
        both = LogisticRegression(features, labels, count, embedder.mesh)
        final, training_pictures = both.fit(penalty), len(labels)
        labels = test[1]
        right = classify(final, test[0]).argmax(1) == labels
        yield "top1", float(right.mean())
        yield "mean_per_class", mean_per_class(right, labels)
        yield "validation_top1", accuracy(penalty)
        yield "validation_queries", len(validation[1])
        yield "penalty_exponent", math.log10(penalty)
        yield "majority", float(np.bincount(labels).max() / len(labels))
        yield "queries", len(labels)
        yield "candidates", count
        yield "training_pictures", training_pictures

    def examples(self, embedder: Encoder) -> dict[str, Iterator[Example]]:
        """Returns {}: the report shows no pictures of this evaluator."""
        return {}


def read_features(
    data: LabelledPictures, embedder: Encoder
) -> tuple[np.ndarray, np.ndarray]:
    """Returns features (N, W) and labels (N,) of all labelled pictures.

    Raises:
      InputError: no picture has a label.
    """
    labels: list[int] = []
    features = embedder.image_features(data.collect(labels))
    return features, np.array(labels)
