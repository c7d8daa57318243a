"""DataComp's evaluation (arXiv 2304.14108): 38 sets, their main scores and the average.

datacomp.json lists the sets, and two more whose fairness figures are not part of the
average. datacomp_published.json holds published rows of the same table.
"""

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.benchmark_folder import CLASSIFICATION, RETRIEVAL, read_type
from align_jax.input.hub_cache import dataset_name, find_snapshot

HERE = pathlib.Path(__file__).parent
AVERAGE = "eval/datacomp/average"


@dataclasses.dataclass(frozen=True)
class DatacompSet:
    """One of the sets.

    Attributes:
      key: DataComp's key, such as "vtab/dtd".
      name: name in the table of results.
      size: number of samples.
      classes: number of classes; 0 if the set has none, or several kinds.
      metric: DataComp's name of the main metric; "" for none.
      score: our name of the main metric.
      chance: main metric of a random model; None if it is not published.
      task: key of `TASKS` in `align_jax.evaluation.evaluators.wds`, or "".
      groups: columns of metadata, see `WdsConfig`.
      folders: the set's other folder names on the hub.
    """

    key: str
    name: str
    size: int
    classes: int = 0
    metric: str = ""
    score: str = ""
    chance: float | None = None
    task: str = ""
    groups: dict[str, int] = dataclasses.field(default_factory=dict)
    folders: Sequence[str] = ()

    @property
    def evaluator(self) -> str:
        """Name of the set's evaluator, such as "wds_vtab-dtd"."""
        return f"wds_{self.key.replace('/', '-')}"

    @property
    def type(self) -> str:
        """Type of set that its dataset_type.txt must name; "" for a set of a `task`."""
        if self.task:
            return ""
        return CLASSIFICATION if self.classes else RETRIEVAL

    @property
    def result(self) -> str:
        """Name of the set's main score among the results."""
        return f"eval/{self.evaluator}/{self.score}"

    def describe(self, directory: str, check_sizes: bool) -> dict[str, Any]:
        """Returns the literal config of the set's evaluator.

        Args:
          directory: path or URL of the set's folder.
          check_sizes: whether the set must have its published size.

        Raises:
          InputError: the folder is of another type, so it would have other scores.
        """
        if self.type and (found := read_type(directory)) != self.type:
            raise InputError(
                f"{directory} has the type {found!r}; {self.name} is of the type"
                f" {self.type!r}, which dataset_type.txt must name"
            )
        return {
            "kind": "wds",
            "directory": directory,
            "task": self.task,
            "expected": self.size if check_sizes else 0,
            "expected_classes": self.classes,
            "groups": self.groups,
        }


_TABLE = json.loads((HERE / "datacomp.json").read_text(encoding="utf-8"))
SETS = [DatacompSet(**fields) for fields in _TABLE["sets"]]
SCORED = [each for each in SETS if each.metric]  # the 38 of the average
GROUPS: dict[str, list[str]] = _TABLE["groups"]
AVERAGES = {"average": [each.name for each in SCORED], **GROUPS}
PUBLISHED = json.loads((HERE / "datacomp_published.json").read_text(encoding="utf-8"))


def find_sets(directory: str) -> dict[str, str]:
    """Finds the sets among the folders of a folder, which may be the hub's cache.

    Returns:
      The path of each set's folder by the set's name, in the order of `SETS`.

    Raises:
      InputError: the folder is missing, it has none of the sets, or two folders of one.
    """
    found, left_out = match_sets(directory)
    if not found:
        instead = f", not {', '.join(left_out)}" if left_out else ""
        raise InputError(
            f"{places.resolve(directory)} has none of DataComp's sets; wanted folders"
            f" such as {SETS[0].evaluator}_test{instead}"
        )
    return found


def misnamed_sets(directory: str) -> list[str]:
    """Lists a folder's names with wds_, or those that only lack it, that are no set."""
    return match_sets(directory)[1]


def match_sets(directory: str) -> tuple[dict[str, str], list[str]]:
    """Returns the results of `find_sets`, maybe {}, and of `misnamed_sets`."""
    root = places.resolve(directory)
    names = {name: dataset_name(name) for name in places.list_names(root)}
    left_out = {n for n, name in names.items() if name.lower().startswith("wds_")}
    found = {}
    for each in SETS:
        known = (each.evaluator, *each.folders)
        there = [n for n, name in names.items() if name.removesuffix("_test") in known]
        if len(there) > 1:
            raise InputError(
                f"{root} has {' and '.join(there)}, which are both {each.name}; remove"
                " one"
            )
        if there:
            found[each.name] = find_snapshot(os.path.join(root, there[0]))
        left_out -= {*there}
        left_out |= {n for n in names if f"wds_{n.removesuffix('_test')}" in known}
    return found, sorted(left_out)


def main_scores(results: Mapping[str, float]) -> dict[str, float]:
    """Returns the main scores of the results by the name of the set."""
    return {s.name: results[s.result] for s in SCORED if s.result in results}


def summarise(results: Mapping[str, float]) -> dict[str, float]:
    """Returns the averages of some results, as results; {} without any of the sets.

    The average over all sets, and that of a group, exist only if no set of it is
    missing. `average_of_present` is over the sets that there are. `queries` is the
    number of these sets.
    """
    scores = main_scores(results)
    if not scores:
        return {}
    found = {}
    for name, members in AVERAGES.items():
        if (mean := _mean(scores, members)) is not None:
            found[f"eval/datacomp/{name}"] = mean
    if AVERAGE not in found:
        found["eval/datacomp/average_of_present"] = float(np.mean([*scores.values()]))
    return found | {"eval/datacomp/queries": len(scores)}


def write_row(results: Mapping[str, float], model: str, pretrained: str) -> str:
    """Returns a CSV file with a model's row, in the columns of open_clip's table.

    A score that does not exist is an empty cell.

    Args:
      results: results of an evaluation.
      model: the column `name`.
      pretrained: the column `pretrained`.
    """
    scores, file = main_scores(results), io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(PUBLISHED["columns"])
    cells = (scores.get(name) for name in PUBLISHED["columns"][3:])
    row = ["" if cell is None else f"{cell:.4f}" for cell in cells]
    writer.writerow([model, pretrained, results.get(AVERAGE, ""), *row])
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class Table:
    """The averages and main scores beside published ones, as texts.

    Attributes:
      title: title of the table.
      head: column names; published models are numbered from 1.
      rows: cells of each row; the first cell names the row.
      remarks: list of the published models' names, in the order of their numbers.
      source: source of the published numbers.
      missing: sentence on the sets without a score; "" if there are none.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    remarks: list[str]
    source: str
    missing: str

    def format(self) -> str:
        """Formats the table for a terminal."""
        widths = [1 + max(map(len, cells)) for cells in zip(*self.rows, strict=True)]
        lines = [
            "".join(
                cell.ljust(width) if column < 2 else cell.rjust(max(width, 7))
                for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in (self.head, *self.rows)
        ]
        lines += [f"[{number}] {name}" for number, name in enumerate(self.remarks, 1)]
        return "\n".join([self.title, *lines, *filter(None, [self.missing])])


def make_table(results: Mapping[str, float]) -> Table | None:
    """Makes the table of some results; None if they have none of the sets."""
    if not (scores := main_scores(results)):
        return None
    models = _published_models()
    rows = []
    for name, members in AVERAGES.items():
        value = results.get(f"eval/datacomp/{name}")
        others = [_mean(model, members) for model in models.values()]
        cells = map(_cell, (value, None, *others))  # no chance is published
        rows.append([name.replace("_", " "), "mean", *cells])
    for each in SCORED:
        others = [model.get(each.name) for model in models.values()]
        cells = map(_cell, (scores.get(each.name), each.chance, *others))
        rows.append([each.name, each.metric, *cells])
    numbers = [f"[{number}]" for number in range(1, 1 + len(models))]
    missing = [each.name for each in SCORED if each.name not in scores]
    return Table(
        title="DataComp's 38 sets",
        head=["set", "metric", "ours", "chance", *numbers],
        rows=rows,
        remarks=[*models],
        source=PUBLISHED["source"],
        missing=f"{len(scores)} of {len(SCORED)} sets; missing: {', '.join(missing)}."
        if missing
        else "",
    )


def _published_models() -> dict[str, dict[str, float]]:
    """Returns the scores of each published model by set; some models have few."""
    sets = PUBLISHED["columns"][3:]
    rows = {
        f"{r[0]} {r[1]}": dict(zip(sets, r[3:], strict=True)) for r in PUBLISHED["rows"]
    }
    others = {f"{o['name']}: {o['note']}": o["scores"] for o in PUBLISHED["others"]}
    return rows | others


def _mean(scores: Mapping[str, float], members: Sequence[str]) -> float | None:
    """Returns the mean score of some sets; None if one of them is missing."""
    if not {*members} <= {*scores}:
        return None
    return float(np.mean([scores[member] for member in members]))


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
