"""Pools in DataComp's format as tables for `data.corpus.comparison`."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ibis
import pyarrow as pa

from align_jax.errors import InputError
from data.corpus.comparison import SAME, open_corpus
from data.corpus.engines import Engine
from data.corpus.stage_tables import open_stage
from data.sources.config import SourceConfig
from data.sources.files import list_files
from data.sources.parquet_tables import is_text, open_parquet, plain_type

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
    common = set.intersection(*(_columns(pathlib.Path(root, name)) for name in names))
    rows = engine.read(path / "*.parquet" if path.is_dir() else path)
    uid = rows.uid.cast("string").lower()
    image_id = uid.fill_null("")
    kept = rows.select(
        image_id=image_id,
        uid=uid,
        key=uid,
        url=rows.url.cast("string"),
        text=rows.text.cast("string").fill_null(""),
    )
    facts: dict[str, Any] = {
        "width": _finite(rows.original_width).cast("int64"),
        "height": _finite(rows.original_height).cast("int64"),
        "format": ibis.literal(""),
        "error": ibis.literal(""),
    }
    numbers = {
        name: _finite(rows[name])
        for name, kind in rows.schema().items()
        if kind.is_floating()
        and name in common
        and name.lower() not in (*WANTED, "image_id")
    }
    return {
        "kept": kept,
        "pictures": rows.select(image_id=image_id, **facts),
        "scores": rows.select(image_id=image_id, **numbers),
    }


def _columns(path: pathlib.Path) -> set[str]:
    """Returns the names of a file's columns.

    Raises:
      InputError: the file is no Parquet file, or it lacks a column or has one of
        another type.
    """
    schema = open_parquet(path).schema_arrow
    if missing := [name for name in WANTED if schema.names.count(name) != 1]:
        raise InputError(
            f"{path} lacks the columns {missing}, each once; it has {schema.names}"
        )
    for names, wanted, fits in (
        (("uid",), "texts or whole numbers", _is_id),
        (("url", "text"), "texts", is_text),
        (("original_width", "original_height"), "numbers", _is_number),
    ):
        for name in names:
            if not fits(plain_type(schema.field(name).type)):
                raise InputError(
                    f"column {name!r} of {path} is {schema.field(name).type}; wanted"
                    f" {wanted}"
                )
    return {*schema.names}


def _is_id(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_integer(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or kind == pa.null()


def _finite(column: Any) -> Any:
    """Replaces NaN and infinity by null."""
    if not column.type().is_floating():
        return column
    return (column.isnan() | column.isinf()).ifelse(ibis.null(), column)


def _as_in_pool(
    corpus: dict[str, ibis.Table], engine: Engine, directory: pathlib.Path
) -> dict[str, ibis.Table]:
    """Gives the kept pairs of a corpus their addresses and the texts of the source."""
    raw = open_stage(engine, directory, "pairs")
    kept = corpus["kept"].join(raw, ["image_id", "text"])
    kept = kept.select("image_id", "key", "url", text=kept.alt_text.fill_null(""))
    return {**corpus, "kept": kept.distinct()}
