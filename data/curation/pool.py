"""Reads a pool: the rows of its Parquet files, and what lies beside them."""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align_jax.errors import InputError
from data.curation.config import CurationConfig, PoolConfig
from data.sources.config import SourceConfig
from data.sources.files import list_files
from data.sources.parquet_tables import open_parquet, reading_parquet

BATCH_ROWS = 1 << 15


def list_tables(path: str, field: str) -> list[pathlib.Path]:
    """Lists Parquet files, sorted by name.

    Args:
      path: file, folder or glob.
      field: config field of the path, for messages.

    Raises:
      InputError: no file matches.
    """
    root, names = list_files(SourceConfig(field, path), (".parquet",))
    return [pathlib.Path(root, name) for name in names]


def name_columns(config: CurationConfig) -> list[str]:
    """Returns the names of the columns that each of the pool's own files must have."""
    pool = config.pool
    names = [pool.uid_column, pool.text_column, pool.width_column, pool.height_column]
    if config.language.kind == "column":
        names.append(config.language.column)
    return names


def find_columns(config: CurationConfig) -> dict[str, bool]:
    """Finds the columns of numbers that the filters name.

    Returns:
      {name: whether the pool's own files have it}, in the order of the filters.

    Raises:
      InputError: the pool or `config.pool.columns` lack a column, or a file differs
        from the first one in its columns, or two names differ only in case.
    """
    pool = config.pool
    scores = dict.fromkeys(b.score for b in config.bounds.values() if b.score)
    own = _common_columns(list_tables(pool.path, "config.pool.path"))
    brought: set[str] = set()
    if pool.columns:
        tables = list_tables(pool.columns, "config.pool.columns")
        brought = _common_columns(tables)
        _check_names([pool.uid_column], brought, pool.columns)
    _check_names(name_columns(config), own, pool.path)
    _check_names(scores, own | brought, pool.path)
    folded = [name.lower() for name in scores]
    if len({*folded}) < len(folded):  # engines do not tell them apart
        raise InputError(
            f"config.filters name the scores {[*scores]}, of which some differ only in"
            " case; wanted other names"
        )
    return {name: name in own for name in scores}


def _common_columns(paths: Sequence[pathlib.Path]) -> set[str]:
    """Returns the names of the columns that all Parquet files have once."""
    names = []
    for path in paths:
        found = open_parquet(path).schema_arrow.names
        names.append({name for name in found if found.count(name) == 1})
    return set.intersection(*names)


def _check_names(wanted: Sequence[str] | dict, found: set[str], path: str) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(
            f"{path} lacks the columns {missing}; all its files have {sorted(found)}"
        )


def read_rows(
    path: pathlib.Path, columns: Sequence[str], at_once: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a Parquet file in order, in batches.

    Args:
      path: path of the file.
      columns: list of the columns to read; an empty one reads all.
      at_once: maximum number of rows of a batch; 0 for BATCH_ROWS.

    Raises:
      InputError: the file is damaged.
    """
    file = open_parquet(path)
    with reading_parquet(path):
        rows = at_once or BATCH_ROWS
        yield from file.iter_batches(rows, columns=[*columns] or None)


def read_texts(column: pa.Array, name: str, path: pathlib.Path) -> list[str]:
    """Returns the texts of a column; null is "", and bytes that are no UTF-8 are `�`.

    Raises:
      InputError: the column holds no texts.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        found = column.cast(pa.large_binary()).to_pylist()
    except pa.ArrowException as error:
        raise InputError(
            f"column {name!r} of {path} is {column.type}; wanted texts"
        ) from error
    return [(text or b"").decode(errors="replace") for text in found]


def read_numbers(column: pa.Array, name: str, path: pathlib.Path) -> pa.Array:
    """Returns a column as float64; a number that is not finite becomes null.

    Raises:
      InputError: the column holds no numbers.
    """
    kind = column.type
    types = pa.types
    numeric = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    if not any(is_type(kind) for is_type in numeric):
        raise InputError(f"column {name!r} of {path} is {kind}; wanted numbers")
    numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return pa.array(numbers, mask=~np.isfinite(numbers))


def embedding_file(pool: PoolConfig, table: pathlib.Path) -> pathlib.Path:
    """Returns the file of the embeddings of one of the pool's tables.

    Raises:
      InputError: the file is missing.
    """
    folder = pathlib.Path(pool.embeddings or table.parent)
    candidates = [folder / f"{table.stem}.npz"]
    if pool.embeddings:
        candidates.append(folder / table.name)
    for path in candidates:
        if path.is_file():
            return path
    raise InputError(
        f"{table} has no embeddings: wanted {' or '.join(map(str, candidates))}"
        " (config.pool.embeddings)"
    )


def embedding_files(
    pool: PoolConfig, tables: Sequence[pathlib.Path]
) -> list[pathlib.Path]:
    """Returns the files of the embeddings of the pool's tables, in their order.

    Raises:
      InputError: a file is missing, or two tables of the same name share one.
    """
    owners: dict[pathlib.Path, pathlib.Path] = {}
    for table in tables:
        path = embedding_file(pool, table)
        if path in owners:
            raise InputError(
                f"{owners[path]} and {table} have the same file of embeddings, {path};"
                " wanted one for each (config.pool.embeddings)"
            )
        owners[path] = table
    return [*owners]


def count_rows(path: pathlib.Path) -> int:
    """Returns the number of rows of a Parquet file."""
    return open_parquet(path).metadata.num_rows


def take_rows(path: pathlib.Path, rows: Sequence[int], column: str) -> list[str]:
    """Returns the texts of a few rows of a Parquet file, from their row groups."""
    file = open_parquet(path)
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    groups = np.searchsorted(ends, rows, "right")
    texts: dict[int, str] = {}
    for group in np.unique(groups):
        here = np.asarray(rows)[groups == group]
        found = file.read_row_group(int(group), columns=[column])
        found = found.cast(copied_schema(found.schema))[column]
        taken = found.take(pa.array(here - (ends[group] - sizes[group])))
        found_texts = read_texts(taken.combine_chunks(), column, path)
        texts |= zip(here.tolist(), found_texts, strict=True)
    return [texts[row] for row in rows]


def copied_schema(schema: pa.Schema) -> pa.Schema:
    """Returns a schema without views of texts, of which Arrow cannot take rows."""
    plain = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    fields = [field.with_type(plain.get(field.type, field.type)) for field in schema]
    return pa.schema(fields, schema.metadata)


def copy_rows(
    source: pathlib.Path, rows: np.ndarray, target: pathlib.Path | str
) -> None:
    """Writes chosen rows of a Parquet file, with all columns, to a new file.

    Args:
      source: path of the file.
      rows: (N,) indices in ascending order.
      target: path of the new file.
    """
    schema = copied_schema(open_parquet(source).schema_arrow)
    with pq.ParquetWriter(target, schema) as writer:
        start = 0
        for batch in read_rows(source, []):
            first, last = np.searchsorted(rows, [start, start + len(batch)])
            if first < last:
                taken = batch.cast(schema).take(pa.array(rows[first:last] - start))
                writer.write_batch(taken)
            start += len(batch)
