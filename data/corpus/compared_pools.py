"""Pools in DataComp's format as tables for `data.corpus.comparison`."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ibis

from align_jax.errors import InputError
from data.corpus.comparison import SAME, open_corpus
from data.corpus.engines import Engine
from data.corpus.stage_tables import open_stage
from data.sources.config import SourceConfig
from data.sources.files import list_files
from data.sources.parquet_tables import open_parquet

WANTED = ("uid", "url", "text", "original_width", "original_height")

# The columns whose equal values make two rows the same, by the name of the rows.
SAME_IN_POOLS = {
    "rows by uid": ("uid",),
    "rows by address and text": ("url", "text"),
    "texts": ("text",),
}
SAME_IN_CORPUS_AND_POOL = {
    name: columns for name, columns in SAME_IN_POOLS.items() if "uid" not in columns
}


def open_both(
    engine: Engine, paths: Sequence[pathlib.Path]
) -> tuple[list[dict[str, ibis.Table]], Mapping[str, tuple[str, ...]]]:
    """Opens two corpora or pools, as tables that can be compared.

    Args:
      engine: engine that reads the tables.
      paths: workdirs of builds, or paths of pools.

    Returns:
      The tables of each, and the columns whose equal values make two rows the same, by
      the name of the rows; the first of these tells pairs apart.

    Raises:
      InputError: a path is neither a corpus nor a pool.
    """
    pools = [*map(is_pool, paths)]
    tables = [
        open_pool(engine, path) if pool else open_corpus(engine, path)
        for path, pool in zip(paths, pools, strict=True)
    ]
    if not any(pools):
        return tables, SAME
    if all(pools):
        return tables, SAME_IN_POOLS
    mixed = [
        table if pool else _as_in_pool(table, engine, path)
        for table, path, pool in zip(tables, paths, pools, strict=True)
    ]
    return mixed, SAME_IN_CORPUS_AND_POOL


def is_pool(path: pathlib.Path) -> bool:
    """Returns whether a path is a file, a glob, or a folder with Parquet files.

    The workdir of a build is never a pool.
    """
    if not path.is_dir():
        return True
    return not (path / "stages").exists() and any(path.glob("*.parquet"))


def open_pool(engine: Engine, path: pathlib.Path) -> dict[str, ibis.Table]:
    """Opens a pool, or the rows of it that a filter of `data.curate` kept.

    Args:
      engine: engine that reads the tables.
      path: file, folder or glob of Parquet files.

    Returns:
      The tables `kept` (all rows), `pictures` (their sizes) and `scores` (their columns
      of numbers that are not whole), named as those of `open_corpus`.

    Raises:
      InputError: no file matches, or a file is damaged or lacks a column.
    """
    source = SourceConfig("corpus or pool", str(path))
    root, names = list_files(source, (".parquet",))
    for file in (pathlib.Path(root, name) for name in names):
        found = open_parquet(file).schema_arrow.names
        if missing := [column for column in WANTED if column not in found]:
            raise InputError(f"{file} lacks the columns {missing}; it has {found}")
    rows = engine.read(path / "*.parquet" if path.is_dir() else path)
    uid = rows.uid.cast("string").lower()
    kept = rows.select(
        image_id=uid, uid=uid, key=uid, url=rows.url, text=rows.text.fill_null("")
    )
    facts: dict[str, Any] = {
        "width": rows.original_width.cast("int64"),
        "height": rows.original_height.cast("int64"),
        "format": ibis.literal(""),
        "error": ibis.literal(""),
    }
    numbers = {
        name: rows[name]
        for name, kind in rows.schema().items()
        if kind.is_floating() and name not in WANTED
    }
    return {
        "kept": kept,
        "pictures": rows.select(image_id=uid, **facts),
        "scores": rows.select(image_id=uid, **numbers),
    }


def _as_in_pool(
    corpus: dict[str, ibis.Table], engine: Engine, directory: pathlib.Path
) -> dict[str, ibis.Table]:
    """Gives the kept pairs of a corpus their addresses and the texts of the source."""
    raw = open_stage(engine, directory, "pairs")
    kept = corpus["kept"].join(raw, ["image_id", "text"])
    kept = kept.select("image_id", "key", "url", text=kept.alt_text.fill_null(""))
    return {**corpus, "kept": kept.distinct()}
