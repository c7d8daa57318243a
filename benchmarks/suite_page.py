"""The page of `benchmarks.suite`: the newest table, and ratios over all revisions."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from align_jax import places
from align_jax.report.pages import TEMPLATES, render
from align_jax.report.plots import COLOURS, plot
from align_jax.report.summary import Table
from benchmarks.comparisons import HEAD
from benchmarks.revisions import Outcome, Revision

PAGE = "benchmarks.html"


def make_table(outcomes: Mapping[str, Outcome]) -> Table:
    """Returns the table of all comparisons; a benchmark that failed has a row."""
    rows = []
    for name, outcome in outcomes.items():
        rows += [comparison.row() for comparison in outcome.comparisons]
        if outcome.failure:
            rows.append([f"{name}: {outcome.failure}", *[""] * (len(HEAD) - 1)])
    return Table("Ours beside references", HEAD, rows)


def write_page(path: pathlib.Path, revisions: Sequence[Revision]) -> None:
    """Writes the page of at least one revision, the newest last."""
    newest = revisions[-1]
    page = render(
        TEMPLATES / "benchmarks.html.jinja",
        measured=newest.measured,
        about=newest.about,
        table=make_table(newest.outcomes),
        plots=[_plot(name, revisions) for name in newest.outcomes],
    )
    places.write_text(str(path), page)


def _plot(benchmark: str, revisions: Sequence[Revision]) -> dict[str, str]:
    """Plots the ratios of a benchmark over the revisions, with their spreads."""
    lines: dict[str, dict[int, list[float]]] = {}
    for place, revision in enumerate(revisions):
        if benchmark in revision.outcomes:
            for found in revision.outcomes[benchmark].comparisons:
                label = f"{found.name}, {found.reference}"
                lines.setdefault(label, {})[place] = found.ratios

    def draw(axes: Axes) -> None:
        for i, (label, points) in enumerate(lines.items()):
            middles = [statistics.median(ratios) for ratios in points.values()]
            spreads = [
                (middle - min(ratios), max(ratios) - middle)
                for middle, ratios in zip(middles, points.values(), strict=True)
            ]
            axes.errorbar(
                [*points],
                middles,
                [*zip(*spreads, strict=True)],
                label=label,
                color=COLOURS[i % len(COLOURS)],
                marker="o",
                capsize=3,
                linewidth=1.2,
            )
        axes.axhline(1, color="grey", linestyle=":", linewidth=1)
        axes.set_xticks(
            range(len(revisions)), [revision.name for revision in revisions]
        )
        axes.set_ylabel("ratio")
        if lines:
            axes.legend(fontsize="x-small")

    alt = "; ".join(
        f"{label}: "
        + ", ".join(
            f"{statistics.median(ratios):.2f} at {revisions[place].name}"
            for place, ratios in points.items()
        )
        for label, points in lines.items()
    )
    return plot(benchmark, alt, draw)
