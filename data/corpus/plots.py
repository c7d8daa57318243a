"""Draws the histograms of a corpus for its report page."""

import io
from collections.abc import Callable
from typing import Any

import ibis
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.corpus.engines import Execute
from data.corpus.ngrams import unigrams_of

LONGEST_TEXT = 41  # unigrams; longer texts share the last bar
WIDEST_ASPECT = 60  # tenths; wider pictures share the last bar

# Okabe and Ito's blue, and a grey that shows on white and on black.
KEPT_COLOUR, ALL_COLOUR, BOUND_COLOUR = "#0072b2", "#9aa0a8", "#d55e00"
INK = "#010203"  # replaced by the page's text colour, light or dark


def draw_plots(
    report: dict[str, Any], tables: dict[str, ibis.Table], execute: Execute
) -> list[dict[str, str]]:
    """Draws histograms of picture sizes, aspect ratios, text lengths and n-gram counts.

    Args:
      report: the report of the build.
      tables: the stages `pictures`, `kept`, `flags` and `ngrams`, see `write_page`.
      execute: function that evaluates an expression.

    Returns:
      The results of `plot`.
    """
    bounds = (report.get("config") or {}).get("rules", {})
    pictures, kept = tables["pictures"], tables["kept"]
    pictures = pictures.filter(pictures.error.isnull() & (pictures.width > 0))
    shown = pictures.semi_join(kept, "image_id")
    ngrams = tables["ngrams"]
    counted = {"all": count_values(ngrams, ngrams["count"], execute)}
    return [
        plot(
            "Shorter side of the pictures",
            "pixels",
            {
                "all": count_values(pictures, _shorter(pictures), execute),
                "kept": count_values(shown, _shorter(shown), execute),
            },
            np.geomspace(8, 8192, 41),
            bound=bounds.get("min_shorter_side"),
            log="x",
        ),
        plot(
            "Aspect ratio of the pictures",
            f"longer side / shorter side; {WIDEST_ASPECT / 10:.0f} or more at the end",
            {
                "all": _tenths(count_values(pictures, _aspect(pictures), execute)),
                "kept": _tenths(count_values(shown, _aspect(shown), execute)),
            },
            np.arange(10, WIDEST_ASPECT + 2) / 10,
            bound=bounds.get("max_aspect_ratio"),
            log="y",
        ),
        plot(
            "Length of the texts",
            f"unigrams; {LONGEST_TEXT} or more at the end",
            {
                "all": count_values(tables["flags"], _length(tables["flags"]), execute),
                "kept": count_values(kept, _length(kept), execute),
            },
            np.arange(LONGEST_TEXT + 2) - 0.5,
        ),
        plot(
            "How often n-grams occur",
            "count of a unigram or bigram",
            counted,
            2.0 ** np.arange(int(counted["all"][0].max(initial=1)).bit_length() + 1),
            bound=report.get("ngram_cut"),
            log="xy",
        ),
    ]


def draw_cosines(
    report: dict[str, Any], tables: dict[str, ibis.Table], execute: Execute
) -> list[dict[str, str]]:
    """Draws the histogram of the pictures' largest cosines with evaluation images.

    Returns:
      One result of `plot` in a list; an empty list if `tables` has no `scores`.
    """
    if "scores" not in tables:
        return []
    cosines = tables["scores"].cosine
    values, counts = count_values(tables["scores"], (cosines * 1000).floor(), execute)
    return [
        plot(
            "Likeness to the nearest evaluation image",
            "cosine of the embeddings, 0 where too few clusters are shared",
            {"all": ((values + 0.5) / 1000, counts)},
            np.arange(0, 101) / 100,
            bound=(report.get("config") or {}).get("pictures", {}).get("max_cosine"),
            log="y",
        )
    ]


def draw_balance(
    report: dict[str, Any], tables: dict[str, ibis.Table], execute: Execute
) -> list[dict[str, str]]:
    """Draws the histogram of the pairs an entry of the concept list, all and kept.

    Returns:
      One result of `plot` in a list; an empty list if `tables` has no `entry_counts`.
    """
    if "entry_counts" not in tables:
        return []
    entries = tables["entry_counts"].filter(tables["entry_counts"].pairs > 0)
    counted = {
        "all": count_values(entries, entries.pairs, execute),
        "kept": count_values(entries, entries.kept, execute),
    }
    return [
        plot(
            "Pairs per concept",
            "number of pairs that contain an entry",
            counted,
            2.0 ** np.arange(int(counted["all"][0].max(initial=1)).bit_length() + 1),
            bound=report["balance"]["pairs_per_entry"],
            log="xy",
        )
    ]


def draw_comparison(
    corpora: dict[str, dict[str, ibis.Table]], execute: Execute
) -> list[dict[str, str]]:
    """Draws histograms of two corpora: lengths of texts, sizes and scores of pictures.

    Args:
      corpora: tables `kept`, `pictures` (of kept pairs only) and, if there are scores,
        `scores` and `pair_scores`, by the corpus's name.
      execute: function that evaluates an expression.

    Returns:
      The results of `plot`.
    """

    def count(table: str, value: Callable[[ibis.Table], ibis.Value]) -> dict:
        return {
            name: count_values(tables[table], value(tables[table]), execute)
            for name, tables in corpora.items()
        }

    sides = np.geomspace(8, 8192, 41)
    lengths = np.arange(LONGEST_TEXT + 2) - 0.5
    plots = [
        plot(
            "Length of the texts",
            f"unigrams; {LONGEST_TEXT} or more at the end, per cent of the pairs",
            count("kept", _length),
            lengths,
            shares=True,
        ),
        plot(
            "Shorter side of the pictures",
            "pixels, per cent of the pictures",
            count("pictures", _shorter),
            sides,
            log="x",
            shares=True,
        ),
    ]
    for table in ("scores", "pair_scores"):
        scored = {name: tables.get(table) for name, tables in corpora.items()}
        schemas = [{} if t is None else t.schema() for t in scored.values()]
        for column, kind in schemas[0].items():
            if kind.is_floating() and column in schemas[1]:
                plots += _draw_scores(column, scored, execute)
    return plots


def _draw_scores(
    column: str, scores: dict[str, ibis.Table], execute: Execute
) -> list[dict[str, str]]:
    """Draws the histogram of a score; an empty list if a corpus has none."""
    series = {}
    for name, table in scores.items():
        values, counts = count_values(table, (table[column] * 1000).floor(), execute)
        series[name] = (values + 0.5) / 1000, counts
    if not all(len(values) for values, _ in series.values()):
        return []
    label = f"{column}, per cent of those that were scored"
    lowest = min(values[0] for values, _ in series.values())
    edges = np.arange(0 if lowest >= 0 else -100, 101) / 100
    return [plot(f"Score {column}", label, series, edges, shares=True)]


def plot(
    title: str,
    label: str,
    series: dict[str, tuple[np.ndarray, np.ndarray]],
    edges: np.ndarray,
    bound: float | None = None,
    log: str = "",
    shares: bool = False,
) -> dict[str, str]:
    """Draws overlaid histograms.

    Args:
      title: title of the plot.
      label: label of the value axis.
      series: values (N,) and their counts (N,), by name, as in "all" and "kept"; two
        names at most.
      edges: (E,) edges of the bars; values outside go to the first or last bar.
      bound: bound of a rule, drawn as a line; None for none.
      log: axes with a logarithmic scale, as in "xy".
      shares: whether the bars are percentages of each series, drawn as outlines.

    Returns:
      {"title", "alt", "svg"}: "alt" has the total and the median of each series, "svg"
      is an <svg> element.
    """
    figure = Figure(figsize=(5.2, 3), layout="constrained")
    axes = figure.add_subplot()
    middles = (edges[:-1] + edges[1:]) / 2
    parts = []
    colours = (BOUND_COLOUR if shares else ALL_COLOUR, KEPT_COLOUR)
    for (name, (values, counts)), colour in zip(series.items(), colours, strict=False):
        inside = np.clip(values, middles[0], middles[-1])
        bars, _ = np.histogram(inside, edges, weights=counts)
        if shares:
            bars = 100 * bars / max(counts.sum(), 1)
        floor = 0.5 if "y" in log else 0
        axes.stairs(
            bars, edges, baseline=floor, fill=not shares, color=colour, label=name
        )
        parts.append(f"{name}: {_median(values, counts)}")
    if bound is not None and edges[0] <= bound <= edges[-1]:
        axes.axvline(bound, color=BOUND_COLOUR, linestyle="--", label=f"bound {bound}")
    _dress(axes, label, log)
    file = io.StringIO()
    # Texts stay texts, not outlines. The salt makes ids differ between plots, but not
    # between runs.
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    ):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return {"title": title, "alt": "; ".join(parts), "svg": svg}


def _dress(axes: Axes, label: str, log: str) -> None:
    """Labels and styles the axes, in the page's text colour."""
    if "x" in log:
        axes.set_xscale("log", base=10 if "y" in log else 2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if "y" in log:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_xlabel(label, color=INK)
    axes.tick_params(which="both", colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.legend(fontsize="small", labelcolor=INK, frameon=False)


def count_values(
    table: ibis.Table, value: ibis.Value, execute: Execute
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct integers (N,) of an expression, ascending, and their counts.

    Nulls are left out. Both arrays are float64.
    """
    values = table.select(value=value.cast("int64"))
    rows = execute(values.group_by("value").agg(rows=values.count()))
    rows = rows.dropna().sort_values("value")
    return rows["value"].to_numpy(np.float64), rows["rows"].to_numpy(np.float64)


def _shorter(pictures: ibis.Table) -> ibis.Value:
    return ibis.least(pictures.width, pictures.height)


def _aspect(pictures: ibis.Table) -> ibis.Value:
    """Returns longer / shorter side in whole tenths, at most WIDEST_ASPECT.

    Integer arithmetic gives the same result on every engine.
    """
    longer = ibis.greatest(pictures.width, pictures.height).cast("int64")
    shorter = ibis.least(pictures.width, pictures.height).cast("int64")
    return ibis.least(longer * 10 // shorter, WIDEST_ASPECT)


def _length(pairs: ibis.Table) -> ibis.Value:
    words = ibis.ifelse(pairs.text == "", 0, unigrams_of(pairs).length())
    return ibis.least(words, LONGEST_TEXT)


def _tenths(counted: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Converts whole tenths to the middles of their bars; keeps the counts."""
    values, counts = counted
    return (values + 0.5) / 10, counts


def _median(values: np.ndarray, counts: np.ndarray) -> str:
    total = counts.sum()
    if not total:
        return "none"
    middle = values[np.searchsorted(np.cumsum(counts), total / 2)]
    return f"{total:,.0f}, median {middle:,.4g}"
