"""Compares two corpora or pools: shared pairs, words, sizes, scores and samples."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import ibis

from align_jax import places
from data.corpus.engines import Engine, Execute
from data.corpus.ngrams import unigrams_of
from data.corpus.page import lowest_pairs, printable, read_files, render, show_pictures
from data.corpus.plots import draw_comparison
from data.corpus.stage_tables import open_stage

SHOWN_PAIRS = 24  # of each part
SHOWN_WORDS = 30  # gained, and as many lost

# The columns whose equal values make two rows the same, by the name of the rows.
SAME: Mapping[str, tuple[str, ...]] = {
    "pairs": ("image_id", "text"),
    "pictures by file": ("image_id",),
    "pictures by perceptual hash": ("phash",),
    "texts": ("text",),
}


def open_corpus(engine: Engine, directory: pathlib.Path) -> dict[str, ibis.Table]:
    """Opens a corpus that `data.build` wrote, on either engine.

    Returns:
      The tables `kept`, `pictures` (of kept pairs), `images` (their files) and, if they
      were scored, `scores` of pictures and `pair_scores`.

    Raises:
      InputError: the folder holds no corpus that got so far.
    """
    kept = open_stage(engine, directory, "kept.parquet")
    pictures = open_stage(engine, directory, "pictures.parquet")
    tables = {
        "kept": kept,
        "images": open_stage(engine, directory, "images"),
        "pictures": pictures.semi_join(kept, "image_id"),
    }
    if (directory / "stages" / "scores").exists():
        scores = open_stage(engine, directory, "scores")
        tables["scores"] = scores.semi_join(kept, "image_id")
    if (directory / "stages" / "pair_scores").exists():
        scores = open_stage(engine, directory, "pair_scores")
        scores = scores.semi_join(kept, ["image_id", "text"])
        tables["pair_scores"] = scores.select(pair_score=scores.score)
    return tables


def compare_corpora(
    first: dict[str, ibis.Table],
    second: dict[str, ibis.Table],
    execute: Execute,
    same: Mapping[str, tuple[str, ...]] = SAME,
) -> dict[str, Any]:
    """Compares the kept pairs of two corpora, or the rows of pools.

    Args:
      first: tables from `open_corpus` or `open_pool`.
      second: tables of the other corpus or pool.
      execute: function that evaluates an expression.
      same: columns whose equal values make two rows the same, by the name of the rows.

    Returns:
      {"overlaps": [{"rows", "first", "second", "both"}], numbers of distinct rows as in
      `same`; "words": the result of `compare_words`}.
    """
    overlaps = []
    for name, columns in same.items():
        table = "pictures" if "phash" in columns else "kept"
        one, other = (
            tables[table].select(*columns).drop_null().distinct()
            for tables in (first, second)
        )
        counted = {"first": one, "second": other, "both": one.semi_join(other, columns)}
        overlaps.append(
            {"rows": name}
            | {key: int(execute(rows.count())) for key, rows in counted.items()}
        )
    words = compare_words(first["kept"], second["kept"], execute)
    return {"overlaps": overlaps, "words": words}


def compare_words(
    first: ibis.Table, second: ibis.Table, execute: Execute
) -> dict[str, Any]:
    """Finds the words whose share of all words differs most between two corpora.

    Args:
      first: pairs with the column text.
      second: pairs of the other corpus.
      execute: function that evaluates an expression.

    Returns:
      {"first", "second", "both": numbers of different words; "gained", "lost": the
      words of which the second corpus has more and less, as [{"word", "first",
      "second"}] in words per million}.
    """
    sides = []
    for pairs, is_first in ((first, 1), (second, 0)):
        words = pairs.select(word=unigrams_of(pairs).unnest())
        words = words.filter(words.word != "")
        counted = words.group_by("word").agg(n=words.count())
        sides.append(
            counted.select(
                "word", one=counted.n * is_first, other=counted.n * (1 - is_first)
            )
        )
    both = sides[0].union(sides[1]).group_by("word")
    both = both.agg(one=ibis._.one.sum(), other=ibis._.other.sum())
    total = ibis.window()
    both = both.mutate(
        one=1e6 * both.one / ibis.greatest(both.one.sum().over(total), 1),
        other=1e6 * both.other / ibis.greatest(both.other.sum().over(total), 1),
    ).mutate(change=ibis._.other - ibis._.one)
    numbers = execute(
        both.aggregate(
            first=(both.one > 0).sum(),
            second=(both.other > 0).sum(),
            both=((both.one > 0) & (both.other > 0)).sum(),
        )
    )
    found: dict[str, Any] = {
        name: int(numbers[name].fillna(0).iloc[0]) for name in numbers.columns
    }
    changes = {"gained": both.change.desc(), "lost": both.change.asc()}
    for name, order in changes.items():
        more = both.change > 0 if name == "gained" else both.change < 0
        rows = execute(both.filter(more).order_by(order, "word").limit(SHOWN_WORDS))
        columns = (rows["word"], rows["one"], rows["other"])
        found[name] = [
            {"word": printable(word), "first": float(one), "second": float(other)}
            for word, one, other in zip(*columns, strict=True)
        ]
    return found


def write_comparison(
    report: dict[str, Any],
    corpora: dict[str, dict[str, ibis.Table]],
    path: places.Place,
    execute: Execute,
    same: tuple[str, ...] = SAME["pairs"],
) -> None:
    """Writes the page of a comparison.

    Args:
      report: result of `compare_corpora`.
      corpora: tables of the first and of the second corpus, by their shown names.
      path: path or URL of the page.
      execute: function that evaluates an expression.
      same: columns whose equal values make two pairs the same.
    """
    (one, first), (other, second) = corpora.items()
    kept = {name: tables["kept"] for name, tables in corpora.items()}
    samples: list[tuple[str, list[dict[str, Any]]]] = []
    for title, pairs, tables in (
        (f"Only in {one}", kept[one].anti_join(kept[other], same), first),
        (f"Only in {other}", kept[other].anti_join(kept[one], same), second),
        ("In both", kept[one].semi_join(kept[other], same), first),
    ):
        sample = {title: lowest_pairs(pairs, SHOWN_PAIRS, execute)}
        read = functools.partial(_read_files, tables.get("images"), execute)
        show_pictures(sample, tables["pictures"], read, execute)
        samples += sample.items()
    page = render(
        "comparison.html",
        names=[*corpora],
        report=report,
        plots=draw_comparison(corpora, execute),
        samples=samples,
    )
    places.write_text(path, page)


def _read_files(
    images: ibis.Table | None, execute: Execute, image_ids: list[str]
) -> dict[str, bytes]:
    """Works as `read_files`; a pool has no files."""
    return {} if images is None else read_files(images, execute, image_ids)


def format_comparison(report: dict[str, Any], names: list[str]) -> str:
    """Formats the counts of a comparison for a terminal."""
    lines = [f"A: {names[0]}", f"B: {names[1]}"]
    lines.append(f"{'':<28}{'A':>12}{'B':>12}{'both':>12}")
    words = {"rows": "words"} | report["words"]
    for row in [*report["overlaps"], words]:
        numbers = "".join(f"{row[key]:>12}" for key in ("first", "second", "both"))
        lines.append(f"{row['rows']:<28}{numbers}")
    for name in ("gained", "lost"):
        shown = ", ".join(row["word"] for row in report["words"][name][:12])
        lines.append(f"words {name}: {shown or 'none'}")
    return "\n".join(lines)
