"""The page of the bench of recipes: score against operations, mean and spread."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from align_jax import places
from align_jax.report.pages import TEMPLATES, render
from align_jax.report.plots import COLOURS, DASHES, plot
from align_jax.report.summary import ABSENT, Table
from configs.recipes import RECIPES

PAGE = "recipes.html"
BASELINE = "baseline"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A recipe's result for one number of operations.

    Attributes:
      recipe: name of the recipe.
      share: operations that the run may have, in those of the baseline's whole run.
      operations: operations of the model, in the same unit; at most `share`.
      whole_operations: operations of the model and the optimizer's matrix products, in
        the same unit.
      steps: number of steps.
      learning_rate: chosen learning rate.
      choose: score of each trial on the splits to choose by; None if it diverged.
      scores: mean recall of each reported run, by evaluator; the first evaluator has
        all parts together.
    """

    recipe: str
    share: float
    operations: float
    whole_operations: float
    steps: int
    learning_rate: float
    choose: list[float | None]
    scores: dict[str, list[float]]

    @property
    def score(self) -> float:
        """The mean over the reported runs of the mean recall on all parts together."""
        return statistics.fmean(next(iter(self.scores.values())))


def make_table(cells: Sequence[Cell]) -> Table:
    """Returns the table of all cells; scores are means and deviations in per cent."""
    parts = [*cells[0].scores]
    head = ["recipe", "operations", "with the optimizer's", "steps", "rate", "trials"]
    rows = [
        [
            cell.recipe.replace("_", " "),
            f"{cell.operations:.3f}",
            f"{cell.whole_operations:.3f}",
            f"{cell.steps:,}",
            f"{cell.learning_rate:.2g}",
            _trials(cell.choose),
            *(_spread(cell.scores[part]) for part in parts),
        ]
        for cell in cells
    ]
    names = [part.replace("_", " ") for part in parts]
    return Table("Score against operations", [*head, *names], rows)


def find_reaching(cells: Sequence[Cell]) -> list[str]:
    """Returns a sentence for each recipe: what it needs for the baseline's score.

    The score is that of the baseline's cell with the most operations. If it was
    not run, there are no sentences.
    """
    baselines = [cell for cell in cells if cell.recipe == BASELINE]
    if not baselines:
        return []
    aim = max(baselines, key=lambda cell: cell.operations)
    sentences = []
    for name in dict.fromkeys(cell.recipe for cell in cells if cell is not aim):
        others = [cell for cell in cells if cell.recipe == name and cell is not aim]
        enough = [cell for cell in others if cell.score >= aim.score]
        label, points = name.replace("_", " "), f"{100 * aim.score:.1f}"
        if enough:
            part = min(cell.operations for cell in enough) / aim.operations
            line = f"{label} reaches {points} with {part:.2f} of the operations"
        else:
            best = max(others, key=lambda cell: cell.score)
            part = best.operations / aim.operations
            line = (
                f"{label} does not reach {points}: it has {100 * best.score:.1f} with"
                f" {part:.2f} of the operations"
            )
        sentences.append(line)
    return sentences


def write_page(path: str, cells: Sequence[Cell], identity: Mapping[str, Any]) -> None:
    """Writes the page.

    Args:
      path: path of the file.
      cells: all finished cells, at least one.
      identity: the bench's base config and its numbers of trials and seeds.
    """
    page = render(
        TEMPLATES / "recipes.html.jinja",
        table=make_table(cells),
        plot=_plot(cells),
        reaching=find_reaching(cells),
        about={cell.recipe: RECIPES[cell.recipe].about for cell in cells},
        identity=identity,
    )
    places.write_text(path, page)


def _plot(cells: Sequence[Cell]) -> dict[str, str]:
    """Plots the mean score of each recipe over its operations, with the spread."""

    def draw(axes: Axes) -> None:
        for i, name in enumerate(dict.fromkeys(cell.recipe for cell in cells)):
            own = [cell for cell in cells if cell.recipe == name]
            axes.errorbar(
                [cell.operations for cell in own],
                [100 * cell.score for cell in own],
                [100 * _deviation(next(iter(cell.scores.values()))) for cell in own],
                label=name.replace("_", " "),
                color=COLOURS[i % len(COLOURS)],
                linestyle=DASHES[i // len(COLOURS) % len(DASHES)],
                marker="o",
                capsize=3,
                linewidth=1.2,
            )
        axes.set_xlabel("operations, in those of the baseline's whole run")
        axes.set_ylabel("mean recall, per cent")
        axes.legend(fontsize="small")

    alt = "; ".join(
        f"{cell.recipe.replace('_', ' ')} {100 * cell.score:.1f} with"
        f" {cell.operations:.3f} of the operations"
        for cell in cells
    )
    return plot("Mean recall against operations", alt, draw)


def _trials(scores: Sequence[float | None]) -> str:
    """Returns the trials' scores in per cent, in order."""
    return " ".join("diverged" if s is None else f"{100 * s:.1f}" for s in scores)


def _spread(scores: Sequence[float]) -> str:
    """Returns the mean and, of several runs, the standard deviation in per cent."""
    spread = f"{100 * _deviation(scores):.1f}" if len(scores) > 1 else ABSENT
    return f"{100 * statistics.fmean(scores):.1f} ± {spread}"


def _deviation(scores: Sequence[float]) -> float:
    """Returns the sample standard deviation; 0 for one score."""
    return statistics.stdev(scores) if len(scores) > 1 else 0.0
