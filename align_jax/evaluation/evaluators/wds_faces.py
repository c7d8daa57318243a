"""FairFace and UTKFace: accuracies by race and gender, as DataComp computes them.

The lines of classnames.txt and of the templates begin with an objective, as in
"race:White". The member `npy` of a sample has the columns `COLUMNS`.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from align_jax.embed.embedder import class_embeddings
from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError
from align_jax.evaluation.benchmark_scores import group_means
from align_jax.evaluation.evaluators.wds_tasks import WdsConfig
from align_jax.evaluation.examples import Example
from align_jax.evaluation.ranking import check_finite
from align_jax.input.benchmark_folder import (
    CLASSES_FILE,
    TEMPLATES_FILE,
    BenchmarkFolder,
    read_lines,
    read_templates,
    whole_numbers,
)

OBJECTIVES = ("race", "gender", "age", "toxic")
COLUMNS = ("age", "gender", "race", "race_binary")
WHITE = 1  # number of the class among those of "race"
# Classes of "toxic" (CLIP, arXiv 2103.00020, section 7.1): after those of people come
# four that are not human, then those of crime.
NOT_HUMAN, CRIME = 14, 18


class Faces:
    """Predictions of race, gender and age, and of classes that do harm."""

    def __init__(self, config: WdsConfig) -> None:
        """Opens the set; raises InputError as `BenchmarkFolder`, or for other lines."""
        directory = config.directory
        names = _split(read_lines(directory, CLASSES_FILE), directory, CLASSES_FILE)
        templates = _split(read_templates(directory), directory, TEMPLATES_FILE)
        self._prompts = {
            objective: [[t.format(n) for t in templates[objective]] for n in found]
            for objective, found in names.items()
        }
        if (count := len(names["toxic"])) <= CRIME:
            raise InputError(
                f"{directory} has {count} classes of toxic; wanted more than {CRIME}"
            )
        self._folder = BenchmarkFolder(directory, config.split, config.expected)
        self._folder.require("npy")

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields accuracies and shares, for all and for each group.

        `race_top1` is the accuracy of telling white from other people. It,
        `gender_top1` and `age_top1` have groups by `race_binary`. `gender_x_top1` has
        groups by gender and race, as in `gender_x_1_3_top1`. `crime_share` and
        `not_human_share` are the shares of pictures with a prediction of that kind,
        with groups by race. A value named `worst_...` is that of the worst group.
        """
        rows: list[np.ndarray] = []
        images = embedder.encode_images(self._pictures(rows))
        check_finite(images, "picture")
        predicted = {}
        for objective, prompts in self._prompts.items():
            classes = class_embeddings(embedder, prompts)
            check_finite(classes, "class")
            predicted[objective] = (images @ classes.T).argmax(1)
        truth = dict(zip(COLUMNS, np.stack(rows).T, strict=True))
        binary, toxic = truth["race_binary"], predicted["toxic"]
        right_gender = predicted["gender"] == truth["gender"]
        for name, right, groups in (
            ("race", (predicted["race"] != WHITE) == binary, [binary]),
            ("gender", right_gender, [binary]),
            ("age", predicted["age"] == truth["age"], [binary]),
            ("gender_x", right_gender, [truth["gender"], truth["race"]]),
        ):
            yield from _by_group(name, "top1", right, groups)
        for name, harmful in (
            ("crime", toxic >= CRIME),
            ("not_human", (toxic >= NOT_HUMAN) & (toxic < CRIME)),
        ):
            yield from _by_group(name, "share", harmful, [truth["race"]])
        yield "queries", len(images)

    def _pictures(self, rows: list[np.ndarray]) -> Iterator[bytes]:
        """Yields the pictures and adds the `COLUMNS` of each to `rows`."""
        for number, (picture, (found,)) in enumerate(self._folder.arrays("npy")):
            if found.shape != (len(COLUMNS),):
                raise InputError(
                    f"{self._folder.name(number)} has an npy of shape {found.shape};"
                    f" wanted {len(COLUMNS)} numbers: {', '.join(COLUMNS)}"
                )
            rows.append(whole_numbers(found, self._folder.name(number)))
            yield picture

    def examples(self, embedder: Encoder) -> Mapping[str, Iterator[Example]]:
        """Returns no examples for the report."""
        return {}


def _split(lines: Sequence[str], directory: str, name: str) -> dict[str, list[str]]:
    """Returns the texts of the lines by their objective, one of `OBJECTIVES`."""
    found: dict[str, list[str]] = {objective: [] for objective in OBJECTIVES}
    for line in lines:
        objective, colon, text = line.partition(":")
        if not colon or objective not in found:
            raise InputError(
                f"{name} of {directory} has the line {line!r}; wanted one that begins"
                f" with {', '.join(OBJECTIVES)} and a colon"
            )
        found[objective].append(text)
    if lacking := [objective for objective, texts in found.items() if not texts]:
        raise InputError(f"{name} of {directory} has no line of {lacking[0]}")
    return found


def _by_group(
    name: str, measure: str, values: np.ndarray, columns: Sequence[np.ndarray]
) -> Iterator[tuple[str, float]]:
    """Yields the mean of values (N,), and that of each group of equal columns (N,)."""
    yield f"{name}_{measure}", float(values.mean())
    labels, groups = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
    means = group_means(values, groups)
    if measure == "top1":
        yield f"worst_{name}_{measure}", min(means.values())
    for group, mean in means.items():
        yield f"{name}_{'_'.join(map(str, labels[group]))}_{measure}", mean
