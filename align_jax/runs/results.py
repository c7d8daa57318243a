"""A run's results: one flat JSON file and the table that shows it."""

import dataclasses
import fnmatch
import json
import os
import pathlib
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from align_jax import places
from align_jax.errors import InputError
from align_jax.runs import workdir as folder
from align_jax.runs.metric_lines import stream_metrics
from align_jax.runs.pace import STARTED

# Name of a run's report, beside its results.
REPORT_FILE = "report.html"
PUBLISHED = json.loads(pathlib.Path(__file__).with_name("published.json").read_text())
# Last words of the names of values that an evaluator yields beside its scores; see
# `Evaluator.run`. All other values are scores.
BESIDE = (
    "queries pairs candidates pictures prompts chance majority std exponent trial"
).split()


def collect_results(workdir: str) -> dict[str, float]:
    """Gathers a finished run's results from its metrics.

    Returns:
      {"step": last step, "eval/...": the last step's scores, "train/...": its metrics,
      "untrained/eval/...": the scores at step 0, "untrained/train/...": its metrics}.
    """
    last: float = -1
    untrained: dict[str, float] = {}
    trained: dict[str, float] = {}
    for row in stream_metrics(workdir):  # up to a million lines
        if STARTED in row:  # totals of earlier starts
            continue
        own = {k: v for k, v in row.items() if k.startswith(("train/", "eval/"))}
        if row["step"] > last:
            last, trained = row["step"], {}
        if row["step"] == last:
            trained |= own
        if row["step"] == 0:
            untrained |= {f"untrained/{name}": value for name, value in own.items()}
    return {"step": last, **(untrained if last else {}), **trained}


def read_results(path: str) -> dict[str, Any]:
    """Reads a file of results: {"step": ..., "eval/...": ...}, or {"diverged": text}.

    Raises:
      InputError: the file is missing or damaged, or a value that should be a number is
        none.
    """
    results = places.read_object(path)
    check_numbers({k: v for k, v in results.items() if k != "diverged"}, path)
    return results


def check_numbers(values: Mapping[str, Any], where: str) -> None:
    """Raises InputError for the first value that is no number; `where` names them."""
    for name, value in values.items():
        if not isinstance(value, int | float):
            raise InputError(f"{where}: {name} is {value!r}; wanted a number")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table of results; None stands for a number that does not exist.

    Attributes:
      name: "eval/<evaluator>/<score>".
      value: score of the run.
      untrained: score at step 0, which is that of published weights if the run
        starts from them.
      chance: score of a random order; for top1 the share of the largest class.
      queries: number of pictures, texts or pairs that the value is computed from.
      published: published values of this score as fractions, one for each of the
        columns (models) of `PUBLISHED`.
      marks: numbers of the remarks on the published values, such as "[1, 2]", see
        `number_remarks`; "" for none.
    """

    name: str
    value: float
    untrained: float | None
    chance: float | None
    queries: int | None
    published: list[float | None]
    marks: str


def is_score(name: str) -> bool:
    """Returns whether a result's name is "eval/..." and its last word not `BESIDE`."""
    measure, _ = _split_last_word(name)
    return name.startswith("eval/") and measure not in BESIDE


def _split_last_word(name: str) -> tuple[str, str]:
    """Returns ("recall", "@5") for a name like "eval/coco/i2t_recall@5"."""
    word = name.rpartition("/")[2].rpartition("_")[2]
    measure, at, cut = word.partition("@")
    return measure, at + cut


def table_rows(results: Mapping[str, float]) -> list[Row]:
    """Returns a row for every score among the results, in their order."""
    columns = PUBLISHED["columns"]
    rows = []
    marks, _ = number_remarks(filter(is_score, results))
    for name in filter(is_score, results):
        measure, cut = _split_last_word(name)
        stem = name.removesuffix(measure + cut)
        evaluator = name.rpartition("/")[0] + "/"
        chance = "majority" if name == f"{evaluator}top1" else f"chance{cut}"
        counts = [f"{stem}queries", f"{stem}pairs"]
        counts += [f"{evaluator}queries", f"{evaluator}i2t_queries"]
        known = PUBLISHED["measures"].get(name.removeprefix("eval/"))
        row = Row(
            name=name,
            value=results[name],
            untrained=results.get(f"untrained/{name}"),
            chance=results.get(stem + chance),
            queries=next((int(results[c]) for c in counts if c in results), None),
            published=[x and x / 100 for x in known or [None] * len(columns)],
            marks=marks[name],
        )
        rows.append(row)
    return rows


def main_scores(results: Mapping[str, float]) -> dict[str, float]:
    """Returns each evaluator's main score, {"<evaluator>/<score>": value}.

    The main score is `mean_recall`, or the first score of an evaluator without it.
    """
    names: dict[str, str] = {}
    for name in filter(is_score, results):
        evaluator, _, score = name.rpartition("/")
        if evaluator not in names or score == "mean_recall":
            names[evaluator] = name
    return {name.removeprefix("eval/"): results[name] for name in names.values()}


def number_remarks(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Numbers the remarks of `PUBLISHED` that are on some measures.

    A remark tells how our protocol differs from the published one, or what the source
    does not say.

    Args:
      names: name of each measure, "<evaluator>/<score>", with "eval/" before or not.

    Returns:
      {name: its remarks' numbers, such as "[1, 2]", or ""}, and the remarks in the
      order of their numbers, from 1. A measure without a published value has none.
    """
    marks, texts = {}, list[str]()
    for name in names:
        measure, numbers = name.removeprefix("eval/"), []
        for remark in PUBLISHED["remarks"] if measure in PUBLISHED["measures"] else ():
            if any(fnmatch.fnmatchcase(measure, pattern) for pattern in remark["on"]):
                if remark["text"] not in texts:
                    texts.append(remark["text"])
                numbers.append(str(1 + texts.index(remark["text"])))
        marks[name] = f"[{', '.join(numbers)}]" if numbers else ""
    return marks, texts


def published_columns(rows: Collection[Sequence[float | None]]) -> list[int]:
    """Returns the indices of the columns of `PUBLISHED` that are not empty.

    Args:
      rows: one `Row.published` or more; a column is empty if all have None there.
    """
    return [
        i
        for i in range(len(PUBLISHED["columns"]))
        if any(row[i] is not None for row in rows)
    ]


def format_table(results: dict[str, float]) -> str:
    """Formats the rows of `table_rows` for a terminal, without empty columns.

    Remarks on published values follow the table.
    """
    rows = table_rows(results)
    columns: dict[str, list[float | None]] = {
        "trained": [row.value for row in rows],
        "step 0": [row.untrained for row in rows],
        "chance": [row.chance for row in rows],
        "queries": [row.queries for row in rows],
    }
    for i, name in enumerate(PUBLISHED["columns"]):
        columns[name] = [row.published[i] for row in rows]
    shown = {
        name: values
        for name, values in columns.items()
        if any(value is not None for value in values)
    }
    lines = [f"{'measure':<38}" + "".join(f"{name:>12}" for name in shown)]
    for i, row in enumerate(rows):
        cells = (_format(values[i]) for values in shown.values())
        line = f"{row.name:<38}" + "".join(f"{cell:>12}" for cell in cells)
        lines.append(f"{line.rstrip()} {row.marks}")
    for number, text in enumerate(number_remarks(row.name for row in rows)[1], 1):
        indent = f"[{number}] "
        lines.append(
            textwrap.fill(
                text, 88, initial_indent=indent, subsequent_indent=" " * len(indent)
            )
        )
    return "\n".join(line.rstrip() for line in lines)


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def print_results(workdir: str) -> None:
    """Prints a finished run's table and the paths of its results and report."""
    path = os.path.join(workdir, folder.RESULTS_FILE)
    print(format_table(read_results(path)))
    print(f"results: {path}")
    report = os.path.join(workdir, REPORT_FILE)
    if places.exists(report):
        print(f"report:  {report}")
