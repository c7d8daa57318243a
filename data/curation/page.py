"""The report page of a curation: each filter's counts, histograms and examples.

The page is one HTML file without scripts, and texts of the pool are escaped. The
examples are the rows of lowest hash, hence random.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ibis
import numpy as np

from align_jax import places
from data.corpus.engines import Execute
from data.corpus.page import printable, render, share
from data.corpus.plots import count_values, plot
from data.corpus.rule_counts import rule_names, unbroken
from data.corpus.score_ranks import draw_scores
from data.curation.config import FilterBounds, PoolConfig
from data.curation.pool import take_rows
from data.curation.rules import aspect_ratio, score_of, shorter_side

KEPT, DROPPED = 24, 8  # examples of kept rows, and of those that a rule drops first
LONGEST, MOST_WORDS, WIDEST = 200, 40, 60  # characters, words, tenths of a ratio
LANGUAGES = 20  # of the most frequent ones


def write_page(
    report: dict[str, Any],
    *,
    filters: Mapping[str, FilterBounds],
    facts: ibis.Table,
    flags: Mapping[str, ibis.Table],
    tables: Sequence[pathlib.Path],
    pool: PoolConfig,
    path: pathlib.Path,
    execute: Execute,
) -> None:
    """Writes the report page.

    Args:
      report: `name`, `rows`, `filters` (by name {"kept", "rules", "min_score"}) and
        `config`.
      filters: rules of each filter.
      facts: facts about all rows.
      flags: result of `flag_rows` by filter.
      tables: Parquet files of the pool.
      pool: config of the pool.
      path: path of the page.
      execute: function that evaluates an expression.
    """
    sections = []
    for name, bounds in filters.items():
        found = report["filters"][name]
        kept = facts.semi_join(unbroken(flags[name]), ["shard", "row"])
        series = {"all": facts, "kept": kept}
        sections.append(
            {
                **found,
                "name": name,
                "share": share(found["kept"], report["rows"]),
                "shares": [share(r["first"], report["rows"]) for r in found["rules"]],
                "plots": draw_plots(bounds, series, execute),
                "languages": count_languages(bounds, series, execute),
                "examples": sample_rows(found, flags[name], tables, pool, execute),
            }
        )
    page = render(
        "page_subsets.html",
        name=report["name"],
        rows=report["rows"],
        sections=sections,
        config=json.dumps(report["config"], indent=2, ensure_ascii=False),
    )
    places.write_text(path, page)


def draw_plots(
    bounds: FilterBounds, series: Mapping[str, ibis.Table], execute: Execute
) -> list[dict[str, str]]:
    """Draws a histogram of each number that a filter bounds.

    Args:
      bounds: rules of the filter.
      series: facts about all rows and about the kept ones, as "all" and "kept".
      execute: function that evaluates an expression.

    Returns:
      The results of `plot`.
    """

    def draw(
        title: str,
        label: str,
        value: Callable[..., ibis.Value],
        edges: np.ndarray,
        *,
        bound: float,
        parts: int = 1,
        log: str = "",
    ) -> dict[str, str]:
        """Draws integers, or multiples of 1 / `parts`."""
        counted = {}
        for name, table in series.items():
            values, counts = count_values(table, value(table), execute)
            middle = 0.5 if parts > 1 else 0
            counted[name] = ((values + middle) / parts, counts)
        return plot(title, label, counted, edges, bound=bound, log=log)

    plots = []
    if bounds.score:
        scores = {
            name: table.select(score=score_of(table, bounds))
            for name, table in series.items()
        }
        plots.append(draw_scores(bounds.score, scores, bounds.min_score, execute))
    if bounds.min_shorter_side:
        plots.append(
            draw(
                "Shorter side of the pictures",
                "pixels",
                shorter_side,
                np.geomspace(8, 8192, 41),
                bound=bounds.min_shorter_side,
                log="x",
            )
        )
    if bounds.max_aspect_ratio:
        plots.append(
            draw(
                "Aspect ratio of the pictures",
                f"longer side / shorter side; {WIDEST / 10:.0f} or more at the end",
                lambda facts: ibis.least((aspect_ratio(facts) * 10).floor(), WIDEST),
                np.arange(10, WIDEST + 2) / 10,
                parts=10,
                bound=bounds.max_aspect_ratio,
                log="y",
            )
        )
    for field, fact, most in (
        ("min_words", "words", MOST_WORDS),
        ("min_tokens", "tokens", MOST_WORDS),
        ("min_characters", "characters", LONGEST),
    ):
        if bound := getattr(bounds, field):
            plots.append(
                draw(
                    f"{fact.capitalize()} of the texts",
                    f"{fact}; {most} or more at the end",
                    lambda facts, fact=fact, most=most: ibis.least(facts[fact], most),
                    np.arange(most + 2) - 0.5,
                    bound=bound,
                )
            )
    return plots


def count_languages(
    bounds: FilterBounds, series: Mapping[str, ibis.Table], execute: Execute
) -> list[tuple[str, int, int]]:
    """Returns the most frequent languages with their rows, all and kept.

    The list is empty if the filter has no rule of languages.
    """
    if not bounds.languages:
        return []
    counts: dict[str, dict[str, int]] = {}
    for name, facts in series.items():
        known = facts.select(language=facts.language.fill_null(""))
        found = execute(known.group_by("language").agg(rows=known.count()))
        pairs = zip(found["language"], map(int, found["rows"]), strict=True)
        counts[name] = dict(pairs)
    order = sorted(counts["all"].items(), key=lambda item: (-item[1], item[0]))
    return [
        (language or "unknown", rows, counts["kept"].get(language, 0))
        for language, rows in order[:LANGUAGES]
    ]


def sample_rows(
    found: dict[str, Any],
    flags: ibis.Table,
    tables: Sequence[pathlib.Path],
    pool: PoolConfig,
    execute: Execute,
) -> dict[str, list[str]]:
    """Returns texts of kept rows as "kept", and of those that each rule drops first."""
    rules = rule_names(flags)
    samples = {"kept": _lowest(unbroken(flags), KEPT, execute)}
    earlier = ibis.literal(False)
    for name, row in zip(rules, found["rules"], strict=True):
        first = flags.filter(flags[name] & ~earlier)
        samples[name] = _lowest(first, DROPPED, execute) if row["first"] else []
        earlier = earlier | flags[name]
    places_of: dict[int, list[int]] = {}
    for shard, row in {place for sample in samples.values() for place in sample}:
        places_of.setdefault(shard, []).append(row)
    texts: dict[tuple[int, int], str] = {}
    for shard, rows in places_of.items():
        found_texts = take_rows(tables[shard], rows, pool.text_column)
        texts |= {
            (shard, row): printable(text)
            for row, text in zip(rows, found_texts, strict=True)
        }
    return {
        name: [texts[place] for place in sample] for name, sample in samples.items()
    }


def _lowest(rows: ibis.Table, count: int, execute: Execute) -> list[tuple[int, int]]:
    picked = rows.order_by("key", "shard", "row").limit(count)
    frame = execute(picked.select("shard", "row"))
    return [*zip(map(int, frame["shard"]), map(int, frame["row"]), strict=True)]
