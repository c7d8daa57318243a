"""A run's results: one flat JSON file and the table that shows it."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence

from align_jax import places
from align_jax.runs import workdir as folder
from align_jax.runs.metric_lines import read_metrics

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
    rows = read_metrics(workdir)
    last = max(row["step"] for row in rows)
    results: dict[str, float] = {"step": last}
    for row in rows:
        step = row["step"]
        prefix = {0: "untrained/", last: ""}.get(step)
        if prefix is not None:
            own = {k: v for k, v in row.items() if k.startswith(("train/", "eval/"))}
            results |= {prefix + name: value for name, value in own.items()}
    return results


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table of results; None stands for a number that does not exist.

    Attributes:
      name: "eval/<evaluator>/<score>".
      value: score of the run.
      untrained: score at step 0.
      chance: score of a random order; for top1 the share of the largest class.
      queries: number of pictures, texts or pairs that the value is computed from.
      published: published values of this score as fractions, one for each of the
        columns (models) of `PUBLISHED`.
    """

    name: str
    value: float
    untrained: float | None
    chance: float | None
    queries: int | None
    published: list[float | None]


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
    """Formats the rows of `table_rows` for a terminal, without empty columns."""
    rows = table_rows(results)
    columns: dict[str, list[float | None]] = {
        "trained": [row.value for row in rows],
        "untrained": [row.untrained for row in rows],
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
        lines.append(f"{row.name:<38}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def print_results(workdir: str) -> None:
    """Prints a finished run's table and the paths of its results and report."""
    path = os.path.join(workdir, folder.RESULTS_FILE)
    print(format_table(places.read_json(path)))
    print(f"results: {path}")
    report = os.path.join(workdir, REPORT_FILE)
    if places.exists(report):
        print(f"report:  {report}")
