"""The page on many runs: tables, curves and plots, beside ALIGN's published numbers."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from align_jax import places
from align_jax.report.found_runs import MEASURES, FoundRun, changed_fields
from align_jax.report.pages import TEMPLATES, render
from align_jax.report.plots import plot_lines, plot_points
from align_jax.runs.lost_time import split_time
from align_jax.runs.results import (
    PUBLISHED,
    main_scores,
    number_remarks,
    published_columns,
)

PAGE, MARKDOWN = "summary.html", "summary.md"
# Sizes against which the scores are plotted.
SCALES = ("parameters", "pairs_seen", "flops")
POINTS = 1000  # of a curve, at most
ABSENT = "–"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose cells are texts.

    Attributes:
      title: title of the table.
      head: column names.
      rows: cells of each row; the first cell names the row.
      remarks: remarks on cells, in the order of their numbers, from 1.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str] = ()

    def markdown(self) -> str:
        """Returns the table in GitHub's Markdown, with its remarks below."""
        lines = [self.head, ["---", *("---:" for _ in self.head[1:])], *self.rows]
        escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        table = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
        notes = [f"[{i}] {remark}" for i, remark in enumerate(self.remarks, 1)]
        return "\n\n".join([table, *notes])


def write_summary(runs: Sequence[FoundRun], out: str) -> list[str]:
    """Writes `summary.html` and `summary.md` into a folder; returns their paths.

    Args:
      runs: list of the runs to compare, from `find_runs`.
      out: path or URL of the folder, which is created if it does not exist.
    """
    changes = changed_fields(runs)
    overview, paper = overview_table(runs, changes), paper_tables(runs)
    times = times_table(runs)
    page = render(
        TEMPLATES / "summary.html.jinja",
        overview=overview,
        times=times,
        paper=paper,
        source=PUBLISHED["source"],
        curves=training_curves(runs),
        scaling=scaling_plots(runs),
        runs=[*zip(runs, changes, strict=True)],
        measures=MEASURES,
        show_measure=show_measure,
        link=lambda run: run.report and os.path.relpath(run.report, out),
        as_json=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    parts = ["# Runs", overview.markdown()]
    if times.rows:
        parts += [f"# {times.title}", times.markdown()]
    parts += ["# The paper's tables", PUBLISHED["source"]]
    for table in paper:
        parts += [f"## {table.title}", table.markdown()]
    texts = {PAGE: page, MARKDOWN: "\n\n".join(parts) + "\n"}
    places.make_folder(out)
    for name, text in texts.items():
        places.write_text(os.path.join(out, name), text)
    return [os.path.join(out, name) for name in texts]


def overview_table(
    runs: Sequence[FoundRun], changes: Sequence[dict[str, Any]]
) -> Table:
    """Makes a row per run: changed fields, measures, and main scores in per cent.

    Args:
      runs: list of the runs to compare.
      changes: changed fields of each run, from `changed_fields`.
    """
    scores = [main_scores(run.results) for run in runs]
    names = [*dict.fromkeys(name for found in scores for name in found)]
    shown = [m for m in MEASURES if any(m in run.measures for run in runs)]
    rows = []
    for run, changed, found in zip(runs, changes, scores, strict=True):
        told = ", ".join(f"{path} = {value!r}" for path, value in changed.items())
        step = run.results.get("step", 0)
        state = "done" if run.finished else f"step {step:.0f}"
        measures = run.measures
        rows.append(
            [
                run.name,
                state,
                told,
                *(show_measure(name, measures.get(name)) for name in shown),
                *(_percent(found.get(name)) for name in names),
            ]
        )
    head = ["run", "state", "changed", *(m.replace("_", " ") for m in shown), *names]
    return Table("Runs", head, rows)


def times_table(runs: Sequence[FoundRun]) -> Table:
    """Makes a row per training run: the share of its time that each cause took."""
    split = {run.name: split_time(run.latest) for run in runs if run.trains}
    rows = [
        [name, *(_percent(seconds / sum(times.values())) for seconds in times.values())]
        for name, times in split.items()
        if times
    ]
    causes = next((times for times in split.values() if times), {})
    return Table("Where the time went, in per cent", ["run", *causes], rows)


def paper_tables(runs: Sequence[FoundRun]) -> list[Table]:
    """Makes the tables of `PUBLISHED` with the scores of finished runs, in per cent."""
    ended = [run for run in runs if run.finished]
    return [
        _of_runs(table, ended) if "runs" in table else _of_measures(table, ended)
        for table in PUBLISHED["tables"]
    ]


def _of_measures(table: dict[str, Any], runs: Sequence[FoundRun]) -> Table:
    """Makes a table with one row per measure and one column per model or run.

    Published models come first, then our runs with at least one of the measures.
    """
    known = {name: PUBLISHED["measures"][name] for name in table["measures"]}
    columns = published_columns(known.values())
    ours = [run for run in runs if any(f"eval/{name}" in run.results for name in known)]
    head = ["measure", *(PUBLISHED["columns"][i] for i in columns)]
    head += [run.name for run in ours] or ["ours"]
    columns_of_ours: list[FoundRun | None] = [*ours] or [None]
    marks, remarks = number_remarks(known)
    rows = [
        [
            name,
            *(_published(published[i], marks[name]) for i in columns),
            *(_ours(run, name, published) for run in columns_of_ours),
        ]
        for name, published in known.items()
    ]
    return Table(table["title"], head, rows, remarks)


def _of_runs(table: dict[str, Any], runs: Sequence[FoundRun]) -> Table:
    """Makes a table with one row per model and two columns per measure.

    The columns are the paper's number and ours. If several of our runs have the model's
    name, each has a row.
    """
    names = table["measures"]
    rows = []
    for title, published in table["runs"].items():
        ours = [
            run
            for run in runs
            if run.title == title and any(f"eval/{n}" in run.results for n in names)
        ]
        rows_of_ours: list[FoundRun | None] = [*ours] or [None]
        for run in rows_of_ours:
            row = [run.name if run and len(ours) > 1 else title]
            for name, value in zip(names, published, strict=True):
                row += [_published(value), _ours(run, name, [value])]
            rows.append(row)
    head, (marks, remarks) = ["run"], number_remarks(names)
    for measure in names:
        head += [f"{measure}, paper {marks[measure]}".rstrip(), "ours"]
    return Table(table["title"], head, rows, remarks)


def _published(value: float | None, marks: str = "") -> str:
    return ABSENT if value is None else f"{value} {marks}".rstrip()


def _ours(run: FoundRun | None, measure: str, published: Sequence) -> str:
    """Formats a run's measure in per cent, with as many decimals as published.

    Args:
      run: our run; None or a run without the measure gives `ABSENT`.
      measure: "<evaluator>/<score>".
      published: published numbers, in per cent; None where there is none. If all are
        None, the result has one decimal.
    """
    value = run.results.get(f"eval/{measure}") if run else None
    if value is None:
        return ABSENT
    decimals = (str(p).partition(".")[2] for p in published if p is not None)
    return f"{100 * value:.{max(map(len, decimals), default=1)}f}"


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"


def show_measure(name: str, value: float | None) -> str:
    """Formats the value of one of `MEASURES`; None gives `ABSENT`."""
    if value is None:
        return ABSENT
    if name in ("parameters", "pairs_seen", "pairs_trained"):
        return f"{value:,.0f}"
    if name in ("model_flops_utilisation", "goodput"):
        return _percent(value) + " %"
    return f"{value:,.0f}" if 100 <= value < 1e9 else f"{value:.3g}"


def training_curves(runs: Sequence[FoundRun]) -> list[dict[str, str]]:
    """Plots the loss and each main score over the steps, with a line per training run.

    Returns:
      The dicts of `plot`.
    """

    def loss(row: dict) -> dict[str, float]:
        return {"loss": row["train/loss"]} if "train/loss" in row else {}

    return _curves(runs, loss) + _curves(runs, main_scores)


def _curves(runs: Sequence[FoundRun], measure: Callable) -> list[dict[str, str]]:
    lines: dict[str, dict[str, list]] = {}
    for run in runs:
        for row in run.rows if run.trains else ():
            for name, value in measure(row).items():
                points = lines.setdefault(name, {}).setdefault(run.name, [])
                points.append((row["step"], value))
    for series in lines.values():
        for name, points in series.items():
            series[name] = points[:: 1 + len(points) // POINTS]
    names = [run.name for run in runs]
    return [plot_lines(name, series, among=names) for name, series in lines.items()]


def scaling_plots(runs: Sequence[FoundRun]) -> list[dict[str, str]]:
    """Plots the main scores of finished training runs against their sizes.

    Returns:
      The dicts of `plot`, one for each of `SCALES` that differs between the runs.
    """
    plots = []
    for scale in SCALES:
        series: dict[str, dict[str, tuple[float, float]]] = {}
        for run in runs:
            if run.trains and run.finished and scale in run.measures:
                for name, value in main_scores(run.results).items():
                    point = (run.measures[scale], value)
                    series.setdefault(name, {})[run.name] = point
        series = {
            name: points
            for name, points in series.items()
            if len({size for size, _ in points.values()}) > 1
        }
        if series:
            title = f"quality by {scale.replace('_', ' ')}"
            plots.append(plot_points(title, MEASURES[scale], series))
    return plots
