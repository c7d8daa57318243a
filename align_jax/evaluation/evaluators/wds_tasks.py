"""Tasks of sets in CLIP_benchmark's folder layout: the scores of each type of set."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from align_jax.embed.embedder import class_embeddings
from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError, check_count
from align_jax.evaluation.benchmark_scores import (
    association_score,
    average_precisions,
    group_means,
    macro_f1,
)
from align_jax.evaluation.class_ranks import first_equals
from align_jax.evaluation.evaluators.retrieval import Retrieval, RetrievalConfig
from align_jax.evaluation.evaluators.zero_shot import (
    RankedClasses,
    ZeroShot,
    ZeroShotConfig,
)
from align_jax.evaluation.examples import Example
from align_jax.evaluation.ranking import check_finite
from align_jax.evaluation.scores import recall_at
from align_jax.input.association_set import read_cues, read_pictures
from align_jax.input.benchmark_folder import (
    CLASSES_FILE,
    BenchmarkFolder,
    BenchmarkPictures,
    read_lines,
    read_templates,
)
from align_jax.ranges import Natural

ROWS = 1 << 12  # pictures whose classes are predicted at a time


@dataclasses.dataclass(frozen=True)
class WdsConfig:
    """A set and the expected counts.

    Attributes:
      directory: path or URL of the set's folder, see
        `align_jax.input.benchmark_folder`.
      split: name of the folder with the tars.
      task: key of `TASKS` in `align_jax.evaluation.evaluators.wds`; "" for the one that
        dataset_type.txt names.
      expected: number of samples that the set must have; 0 for any number.
      expected_classes: number of classes that the set must have; 0 for any number.
      groups: name -> column of the samples' `npy`, for an accuracy of each group of
        pictures with the same number there.
    """

    directory: str
    split: str = "test"
    task: str = ""
    expected: Natural = 0
    expected_classes: Natural = 0
    groups: dict[str, Natural] = dataclasses.field(default_factory=dict)

    def check_classes(self, count: int) -> None:
        """Raises InputError if a set has another number of classes than expected."""
        check_count(self.directory, count, self.expected_classes, "classes")


class Classes:
    """Zero-shot classification: accuracies, macro F1, and accuracies of groups."""

    def __init__(self, config: WdsConfig) -> None:
        """Opens the set; raises InputError as `ZeroShot`, or for other counts."""
        self._config = config
        self._zero_shot = ZeroShot(
            ZeroShotConfig(
                directory=config.directory,
                split=config.split,
                prompts="",
                expected_pictures=config.expected,
                format="wds",
            )
        )
        config.check_classes(len(self._zero_shot.prompts.classes))
        assert isinstance(self._zero_shot.data, BenchmarkPictures)
        self._data = self._zero_shot.data
        for name, column in config.groups.items():
            self._data.check_column(column, name)

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields the values of `ZeroShot`, `f1_macro`, and the groups' accuracies.

        `top5` is left out if there are fewer than five classes. For a group named
        "region", `worst_region_top1` is the accuracy of the worst group with pictures,
        and `region_3_top1` that of group 3, which has `region_3_queries` pictures.
        """
        values = dict(self._zero_shot.run(embedder))
        found = self._zero_shot.found
        assert found is not None  # `run` has set it
        cuts = [1, 5]
        if len(found.classes) < max(cuts):
            del values["top5"]
            cuts = [1]
        yield from values.items()
        yield "f1_macro", macro_f1(predict(found), found.truth)
        for name, column in self._config.groups.items():
            groups = self._data.column(column, name)
            for cut in cuts:
                means = group_means(found.ranks < cut, groups)
                yield f"worst_{name}_top{cut}", min(means.values())
                for group, mean in means.items():
                    yield f"{name}_{group}_top{cut}", mean
            for group in means:
                yield f"{name}_{group}_queries", int((groups == group).sum())

    def examples(self, embedder: Encoder) -> dict[str, Iterator[Example]]:
        """Returns the examples of `ZeroShot`."""
        return self._zero_shot.examples(embedder)


def predict(found: RankedClasses) -> np.ndarray:
    """Returns the predicted class of each picture (N,).

    It is the right class if that has rank 0, else the best of the others. So a tie
    counts against the model here, too.
    """
    classes = found.classes[first_equals(found.classes)]
    predicted = found.truth.copy()
    wrong = np.flatnonzero(found.ranks != 0)
    for start in range(0, len(wrong), ROWS):
        rows = wrong[start : start + ROWS]
        scores = found.images[rows] @ classes.T  # (n, K)
        scores[np.arange(len(rows)), found.truth[rows]] = -np.inf
        predicted[rows] = scores.argmax(1)
    return predicted


class MultipleClasses:
    """Classification of pictures with several classes, by mean average precision."""

    def __init__(self, config: WdsConfig) -> None:
        """Opens the set; raises InputError as `BenchmarkFolder`, or a label is none."""
        self._classes = read_lines(config.directory, CLASSES_FILE)
        self._templates = read_templates(config.directory)
        config.check_classes(len(self._classes))
        self._folder = BenchmarkFolder(config.directory, config.split, config.expected)
        self._folder.require("npy")

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields `mean_average_precision`, its value with ties in order, and counts.

        Ties count against the model. CLIP_benchmark's sort leaves them in an order that
        is not defined; `ties_in_order_mean_average_precision` is that of a stable sort.
        """
        labels: list[np.ndarray] = []
        images = embedder.encode_images(self._pictures(labels))
        prompts = [[t.format(name) for t in self._templates] for name in self._classes]
        classes = class_embeddings(embedder, prompts)
        check_finite(images, "picture")
        check_finite(classes, "class")
        scores, positives = images @ classes.T, np.stack(labels)  # (N, K) both
        name = "mean_average_precision"
        yield name, float(average_precisions(scores, positives).mean())
        in_order = average_precisions(scores, positives, in_order=True)
        yield f"ties_in_order_{name}", float(in_order.mean())
        yield "mean_average_chance", float(positives.mean())
        yield "queries", len(images)
        yield "candidates", len(classes)

    def _pictures(self, labels: list[np.ndarray]) -> Iterator[bytes]:
        """Yields the pictures; adds the classes of each, (K,) bools, to `labels`."""
        for number, (picture, (label,)) in enumerate(self._folder.arrays("npy")):
            wanted = (len(self._classes),)
            if label.shape != wanted or not np.isin(label, (0, 1)).all():
                same = label.shape == wanted
                raise InputError(
                    f"{self._folder.name(number)} has"
                    f" {label.tolist() if same else f'an npy of shape {label.shape}'};"
                    f" wanted {wanted} numbers, each 0 or 1"
                )
            labels.append(label.astype(bool))
            yield picture

    def examples(self, embedder: Encoder) -> Mapping[str, Iterator[Example]]:
        """Returns no examples for the report."""
        return {}


class Captions:
    """Retrieval of pictures by captions and of captions by pictures."""

    def __init__(self, config: WdsConfig) -> None:
        """Reads the set; raises InputError as `Retrieval`."""
        self._retrieval = Retrieval(
            RetrievalConfig(
                directory=config.directory,
                split=config.split,
                expected_images=config.expected,
                format="wds",
            )
        )

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields the values of `Retrieval`, and the mean of both recalls at 1."""
        yield from self._retrieval.run(embedder)
        found = self._retrieval.found
        assert found is not None  # `run` has set it
        recalls = [recall_at(ranks, 1) for ranks in found.ranks]
        yield "mean_recall@1", float(np.mean(recalls))

    def examples(self, embedder: Encoder) -> dict[str, Iterator[Example]]:
        """Returns the examples of `Retrieval`."""
        return self._retrieval.examples(embedder)


class Associations:
    """WinoGAViL: the pictures that a cue is associated with, among 5 to 12."""

    def __init__(self, config: WdsConfig) -> None:
        """Reads the cues; raises InputError as `read_cues`."""
        self._directory = config.directory
        self._cues = read_cues(config.directory, config.expected)

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields the mean Jaccard index by the number of candidates, and counts.

        Ties count against the model. In DataComp's code later candidates win them, as
        in `ties_in_order_jaccard_10-12`.
        """
        names = list(dict.fromkeys(n for cue in self._cues for n in cue.candidates))
        rows = {name: row for row, name in enumerate(names)}
        images = embedder.encode_images(read_pictures(self._directory, names))
        texts = embedder.encode_texts([cue_text(cue.word) for cue in self._cues])
        check_finite(images, "picture")
        check_finite(texts, "text")
        similarities = [
            images[[rows[name] for name in cue.candidates]] @ text
            for text, cue in zip(texts, self._cues, strict=True)
        ]
        sizes = np.array([len(cue.candidates) for cue in self._cues])
        for prefix, in_order in (("", False), ("ties_in_order_", True)):
            pairs = zip(similarities, self._cues, strict=True)
            scores = np.array(
                [association_score(s, cue.right, in_order) for s, cue in pairs]
            )
            for name, chosen in (
                ("10-12", sizes >= 10),
                ("5-6", sizes <= 6),
                *((str(size), sizes == size) for size in (5, 6, 10, 12)),
                ("all", sizes > 0),
            ):
                if chosen.any():
                    yield f"{prefix}jaccard_{name}", float(scores[chosen].mean())
        yield "queries", len(texts)
        yield "pictures", len(images)

    def examples(self, embedder: Encoder) -> Mapping[str, Iterator[Example]]:
        """Returns no examples for the report."""
        return {}


def cue_text(word: str) -> str:
    """Returns the text of a cue, as DataComp writes it: "An apple" or "A tree"."""
    lower = word.lower()
    return f"{'An' if lower[0] in 'aeiou' else 'A'} {lower}"
