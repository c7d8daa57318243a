"""Few-shot probe: ridge regression on a few pictures of each class, in closed form.

The probe of vision transformers (arXiv 2010.11929, section 4.1), see `fit_ridge`.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError
from align_jax.evaluation.evaluators.linear_probe import read_features
from align_jax.evaluation.examples import Example
from align_jax.evaluation.linear_classifier import classify, fit_ridge
from align_jax.input.evaluation_records import LabelledSplits
from align_jax.ranges import Count, Natural, Positive, Seed


@dataclasses.dataclass(frozen=True)
class FewShotConfig(LabelledSplits):
    """The labelled pictures and how many of them are used.

    Attributes:
      directory: dataset in TFDS's layout.
      split: test split.
      train: split, or an expression of TFDS, from which pictures are drawn.
      shots: numbers of training pictures of each class, for one probe each; a smaller
        class gives all it has.
      seeds: seeds of the draws. For one seed, the pictures of fewer shots are among
        those of more shots.
      penalty: factor of the squared weights in the objective.
      expected_pictures: number of records that `split` must have; 0 for any.
      image_feature: name of the encoded picture in a record.
      label_feature: name of the label in a record; a record with label < 0 is skipped.
    """

    directory: str
    split: str
    train: str = "train"
    shots: tuple[Count, ...] = (1, 5, 10, 25)
    seeds: tuple[Seed, ...] = (0, 1, 2)
    penalty: Positive = 1024.0
    expected_pictures: Natural = 0
    image_feature: str = "image"
    label_feature: str = "label"

    def __post_init__(self) -> None:
        for name in ("shots", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is (); wanted one or more")


class FewShot:
    """Accuracy of ridge classifiers on image features: mean and deviation."""

    Config = FewShotConfig

    def __init__(self, config: FewShotConfig) -> None:
        """Opens both splits.

        Raises:
          InputError: a split or a feature is missing, or a size is unexpected.
        """
        self._config = config
        self.train = config.open(config.train)
        self.test = config.open(config.split, config.expected_pictures)

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields accuracies in [0, 1] and their deviations over the seeds, by shots.

        The names are `5_shot_top1` and `5_shot_std`, then `majority` (share of the most
        frequent label), `queries` (test pictures) and `candidates` (classes).

        Raises:
          InputError: no training picture or no test picture has a label.
        """
        config = self._config
        labels = self.train.labels()
        if labels.max() < 0:
            raise InputError(f"{config.directory} {config.train} has no labels")
        draws = [draw_shots(labels, max(config.shots), seed) for seed in config.seeds]
        indices = np.unique(np.concatenate([drawn for drawn, _ in draws]))
        features = embedder.image_features(self.train.pictures(indices.tolist()))
        tests, truth = read_features(self.test, embedder)
        classes = 1 + int(max(labels.max(), truth.max()))
        for shots in config.shots:
            found = []
            for drawn, order in draws:
                chosen = drawn[order < shots]
                rows = features[np.searchsorted(indices, chosen)]
                ridge = fit_ridge(rows, labels[chosen], classes, config.penalty)
                found.append(np.mean(classify(ridge, tests).argmax(1) == truth))
            yield f"{shots}_shot_top1", float(np.mean(found))
            yield f"{shots}_shot_std", float(np.std(found))
        yield "majority", float(np.bincount(truth).max() / len(truth))
        yield "queries", len(truth)
        yield "candidates", classes

    def examples(self, embedder: Encoder) -> dict[str, Iterator[Example]]:
        """Returns {}: the report shows no pictures of this evaluator."""
        return {}


def draw_shots(
    labels: np.ndarray, shots: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws pictures of each class.

    Args:
      labels: (N,) labels; a negative one marks a picture without a label.
      shots: number of pictures of each class; a smaller class gives all it has.
      seed: seed of the draw.

    Returns:
      The indices (M,) of the pictures, ascending, and the position (M,) of each in the
      order in which its class was drawn, from 0. The pictures with positions below k
      are a draw of k shots.
    """
    random = np.random.default_rng(seed)
    turns = np.full(len(labels), -1)
    for label in np.unique(labels[labels >= 0]):
        indices = random.permutation(np.flatnonzero(labels == label))[:shots]
        turns[indices] = np.arange(len(indices))
    drawn = np.flatnonzero(turns >= 0)
    return drawn, turns[drawn]
