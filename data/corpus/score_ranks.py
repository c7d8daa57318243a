"""Ranks and histograms of scores."""

from collections.abc import Mapping

import ibis
import numpy as np
from ibis import Table

from data.corpus.engines import Execute
from data.corpus.plots import count_values, plot

BINS = 1 << 12  # of scores, to find the one of a rank
BARS = 80  # of the histogram of scores


def ranked_score(scores: Table, rank: int, execute: Execute) -> float | None:
    """Returns the score of a rank in falling order, or None if there are too few.

    Scores are counted by bins, so only those of one bin are sorted.

    Args:
      scores: column `score`, float64; nulls are left out.
      rank: rank, counted from 0.
      execute: function that evaluates an expression.
    """
    binned, _, _ = bin_scores(scores, BINS, execute)
    counts = execute(binned.group_by("bin").agg(rows=binned.count()))
    above = 0
    for bin_, rows in sorted(zip(counts.bin, counts.rows, strict=True), reverse=True):
        if above + rows > rank:
            inside = binned.filter(binned.bin == int(bin_)).select("score")
            top = inside.order_by(ibis.desc("score")).limit(int(rank - above) + 1)
            return float(execute(top.score.min()))
        above += int(rows)
    return None


def bin_scores(
    scores: Table, bins: int, execute: Execute
) -> tuple[Table, float, float]:
    """Cuts the range of scores into equal bins.

    Args:
      scores: column `score`, float64; nulls are left out.
      bins: number of bins; the largest score may have one for itself.
      execute: function that evaluates an expression.

    Returns:
      The scores with the column `bin`, counted from 0, the smallest score, and the
      width of a bin, which is 0 if all scores are equal.
    """
    scores = scores.filter(scores.score.notnull())
    ends = execute(scores.aggregate(low=scores.score.min(), high=scores.score.max()))
    low, high = ends.low.iloc[0], ends.high.iloc[0]
    if not low < high:  # or there are none, and both are NaN
        zero = ibis.literal(0).cast("int64")
        return scores.mutate(bin=zero), float(low), 0.0
    width = float(high - low) / bins
    bin_ = ((scores.score - float(low)) / width).floor().cast("int64")
    return scores.mutate(bin=bin_), float(low), width


def draw_scores(
    label: str, scores: Mapping[str, Table], bound: float | None, execute: Execute
) -> dict[str, str]:
    """Draws a histogram of scores; returns the result of `plot`.

    Args:
      label: name of the scores.
      scores: tables with the column `score` of all rows and of the kept ones, as "all"
        and "kept".
      bound: smallest score that a rule keeps.
      execute: function that evaluates an expression.
    """
    _, low, width = bin_scores(scores["all"], BARS, execute)
    if not width > 0:  # all are equal, or none is known
        low, width = (low if np.isfinite(low) else 0.0) - 0.5, 1.0
    counted = {}
    for name, table in scores.items():
        bars = ((table.score - low) / width).floor()
        values, counts = count_values(table, bars, execute)
        counted[name] = (low + (values + 0.5) * width, counts)
    edges = low + np.arange(BARS + 1) * width
    return plot("Scores", label, counted, edges, bound=bound)
