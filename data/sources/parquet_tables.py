"""Pairs in Parquet files, with pictures as bytes, paths or URLs."""

import collections
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from align_jax.errors import InputError, one_line
from align_jax.shard_files import Seekable
from data.sources.config import SourceConfig, TableColumns
from data.sources.files import (
    UID,
    RawPair,
    SourceShard,
    decode_pair,
    list_files,
    read_inside,
    with_uid,
)

# A shard of a large file ends with the row group that reaches one of these bounds.
SHARD_ROWS = 2**16
SHARD_BYTES = 256 * 2**20


class ParquetSource:
    """Parquet files; a shard is a range of row groups, [first, last)."""

    def __init__(self, config: SourceConfig) -> None:
        """Stores the config; reads nothing yet."""
        self.config = config

    def list_shards(self) -> list[SourceShard]:
        """Cuts the files at row groups, by their numbers of rows and bytes."""
        root, names = list_files(self.config, (".parquet",))
        shards = []
        for name in names:
            path = os.path.join(root, name)
            file = open_parquet(path)
            check_parquet(file, path, self.config.columns)
            if self.config.subset and file.schema_arrow.names.count(UID) != 1:
                raise InputError(
                    f"{path} lacks the column {UID!r}, by which"
                    f" {self.config.subset} names pairs; it has"
                    f" {file.schema_arrow.names}"
                )
            parts = parquet_parts(file)
            for first, last in parts:
                part = f"[{first}:{last}]" if len(parts) > 1 else ""
                shards.append(SourceShard(name + part, path, first, last))
        if not shards:
            raise InputError(f"{self.config.path} holds no rows; wanted at least one")
        return shards

    def read(
        self, shard: SourceShard, drops: collections.Counter[str]
    ) -> Iterator[RawPair | None]:
        """Yields the pairs of a shard; a list of texts gives one pair per text.

        Paths of pictures are relative to the file's folder. A picture in Hugging Face's
        form, {bytes, path}, is read from its path if it has no bytes.
        """
        file = open_parquet(shard.path)
        present = check_parquet(file, shard.path, self.config.columns)
        kind = present.image and plain_type(file.schema_arrow.field(present.image).type)
        paths = bool(kind) and is_text(kind)
        folder = pathlib.Path(shard.path).parent
        default = self.config.language.encode()
        uids = UID if file.schema_arrow.names.count(UID) == 1 else ""
        names = (*dataclasses.astuple(present), uids)
        rows = read_parquet_columns(shard.path, names, shard.first, shard.last)
        for image, url, texts, language, uid in rows:
            content, path = (None, image) if paths else (image, None)
            if isinstance(image, dict):
                content, path = image["bytes"], image["path"]
            if texts == []:
                drops["no text"] += 1
                yield None
            for text in texts if isinstance(texts, list) else [texts]:
                pair = decode_pair(
                    content, url or b"", text or b"", language or default, drops
                )
                if pair and path and content is None:
                    inside = read_inside(folder, os.fsdecode(path), drops)
                    pair = None if inside is None else pair._replace(image=inside)
                yield with_uid(pair, uid)


def open_parquet(
    path: str | os.PathLike[str] | IO[bytes] | Seekable, name: str = ""
) -> pq.ParquetFile:
    """Opens a Parquet file; InputError if it is not one.

    Args:
      path: path of the file, or the opened file.
      name: name of the file for the message; its path by default.
    """
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error)
        raise InputError(f"{name or path} is not a Parquet file: {reason}") from error


def check_parquet(
    file: pq.ParquetFile, path: str, columns: TableColumns
) -> TableColumns:
    """Checks the names and types of a Parquet file's columns.

    Args:
      file: the opened file.
      path: path of the file, for messages.
      columns: the columns to look for.

    Returns:
      The names of the columns that the file has; see `TableColumns.among`.

    Raises:
      InputError: a column is missing or has an unsupported type.
    """
    schema = file.schema_arrow
    present = columns.among(schema.names, path)
    for name in (present.url, present.text, present.language):
        kind = plain_type(schema.field(name).type) if name else pa.string()
        lists = name == present.text and is_list(kind)
        if not is_text(plain_type(kind.value_type) if lists else kind):
            raise InputError(f"column {name!r} of {path} is {kind}; wanted string")
    kind = (
        plain_type(schema.field(present.image).type) if present.image else pa.string()
    )
    if not (is_text(kind) or _is_binary(kind) or _is_struct(kind)):
        raise InputError(
            f"column {present.image!r} of {path} is {kind}; wanted binary (a picture"
            " file's bytes) or string (its path)"
        )
    return present


def parquet_parts(file: pq.ParquetFile) -> list[tuple[int, int]]:
    """Cuts a file into ranges [first, last) of row groups.

    A range ends with the row group that reaches SHARD_ROWS rows or SHARD_BYTES bytes.
    """
    parts, first, rows, size = [], 0, 0, 0
    groups = file.metadata.num_row_groups
    for group in range(groups):
        metadata = file.metadata.row_group(group)
        rows += metadata.num_rows
        size += sum(
            metadata.column(n).total_compressed_size
            for n in range(metadata.num_columns)
        )
        if rows >= SHARD_ROWS or size >= SHARD_BYTES or group == groups - 1:
            parts.append((first, group + 1))
            first, rows, size = group + 1, 0, 0
    return parts


def read_parquet_columns(
    path: str, names: Sequence[str], first: int = 0, last: int | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of a range of row groups; texts are bytes that may not be UTF-8.

    Args:
      path: path of the file.
      names: column names in the order of a row; an empty name gives None in every row.
      first: index of the first row group.
      last: index after the last row group; None reads to the end.

    Raises:
      InputError: the file is damaged.
    """
    file = open_parquet(path)
    groups = range(first, file.metadata.num_row_groups if last is None else last)
    distinct = list(dict.fromkeys(name for name in names if name))
    with reading_parquet(path):
        for batch in file.iter_batches(256, row_groups=groups, columns=distinct):
            values = {name: _as_bytes(batch[name]).to_pylist() for name in distinct}
            nothing = [None] * len(batch)
            columns = [values[name] if name else nothing for name in names]
            yield from zip(*columns, strict=True)


@contextlib.contextmanager
def reading_parquet(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises InputError if a Parquet file read in the `with` statement is damaged."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is damaged ({one_line(error)}); download or make it again"
        ) from error


def _as_bytes(column: pa.Array) -> pa.Array:
    """Turns texts into bytes, so that bad UTF-8 is found where it can be counted."""
    kind = plain_type(column.type)
    if kind != column.type:
        column = column.cast(kind)
    if is_text(kind):
        return column.cast(pa.large_binary())
    if _is_struct(kind):
        return pa.StructArray.from_arrays(
            [
                pa.compute.struct_field(column, name).cast(pa.large_binary())
                if kind.get_field_index(name) >= 0
                else pa.nulls(len(column), pa.large_binary())
                for name in ("bytes", "path")
            ],
            ["bytes", "path"],
        )
    if is_list(kind) and is_text(plain_type(kind.value_type)):
        return column.cast(pa.large_list(pa.large_binary()))
    return column


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of a column's values, which a dictionary may hold."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Returns whether the values of a type are texts or nulls."""
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_struct(kind: pa.DataType) -> bool:
    """Returns whether a type is Hugging Face's image, {bytes, path}."""
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    wanted = [field.type for field in kind if field.name in ("bytes", "path")]
    return all(_is_binary(part) or is_text(part) for part in wanted)


def is_list(kind: pa.DataType) -> bool:
    """Returns whether a type is a list of any length."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
