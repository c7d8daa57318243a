"""Pairs in tables: Parquet, CSV and TSV files, with pictures as bytes or paths.

A reader yields rows (image, url, alt_text, language) and counts in `drops` the rows
that cannot become a pair. A table of a crawl is not to be trusted: a path is only
followed inside its root folder, and no field or file is read beyond a bound.
"""

import collections
import csv
import dataclasses
import gzip
import itertools
import os
import pathlib
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from align_jax.errors import InputError

Row = tuple[bytes | None, str | None, str | None, str]

MAX_IMAGE_BYTES = 64 * 2**20
MAX_FIELD_CHARACTERS = 2**25

# A shard of a large Parquet file ends with the row group that reaches one of these.
SHARD_ROWS = 2**16
SHARD_BYTES = 256 * 2**20
CSV_SHARD_ROWS = 2**14  # of a CSV, whose rows may name pictures of any size


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of a table's columns, empty where it has none."""

    image: str = "image"
    url: str = "url"
    text: str = "alt_text"
    language: str = "language"

    def among(self, found: Sequence[str], where: str) -> "Columns":
        """The columns that a table has.

        Args:
          found: names of its columns.
          where: name of the table, for messages.

        Raises:
          InputError: the text, both picture columns, or one that is not a default
            name, hence was asked for, are missing.
        """
        missing = []
        for field in dataclasses.fields(self):
            name = getattr(self, field.name)
            asked = field.name == "text" or name not in ("", field.default)
            if asked and name not in found:
                missing.append(name)
        if missing:
            raise InputError(f"{where} lacks the columns {missing}; it has {[*found]}")
        names = (self.image, self.url, self.text, self.language)
        present = Columns(*(name if name in found else "" for name in names))
        if not present.image and not present.url:
            raise InputError(
                f"{where} has neither {self.image!r} nor {self.url!r}, so no pictures;"
                f" it has {[*found]}"
            )
        return present


def read_picture(
    root: str | os.PathLike, path: str, drops: collections.Counter
) -> bytes | None:
    """Reads a picture file, which must lie inside a folder, links resolved.

    Args:
      root: the folder.
      path: of the file, relative to it.
      drops: counts why a file was not read.

    Returns:
      Its bytes, or None where it was not read.
    """
    try:
        folder = os.path.realpath(root)
        target = os.path.realpath(os.path.join(folder, path))
        if not pathlib.PurePath(target).is_relative_to(folder):
            drops["path outside its folder"] += 1
            return None
        status = os.stat(target)
        if not stat.S_ISREG(status.st_mode):
            drops["image is no file"] += 1
        elif status.st_size > MAX_IMAGE_BYTES:
            drops["image too large"] += 1
        else:
            return pathlib.Path(target).read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in the path.
        drops["image file missing"] += 1
    return None


def open_parquet(path: str) -> pq.ParquetFile:
    """Opens a Parquet file; InputError where it is none."""
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a Parquet file: {reason}") from error


def check_parquet(file: pq.ParquetFile, path: str, columns: Columns) -> Columns:
    """The columns that a Parquet file has.

    Raises:
      InputError: one is missing or of a type that is not read.
    """
    schema = file.schema_arrow
    present = columns.among(schema.names, path)
    for name in (present.url, present.text, present.language):
        kind = _plain(schema.field(name).type) if name else pa.string()
        lists = name == present.text and _is_list(kind)
        if not _is_text(_plain(kind.value_type) if lists else kind):
            raise InputError(f"column {name!r} of {path} is {kind}; wanted string")
    kind = _plain(schema.field(present.image).type) if present.image else pa.string()
    embedded = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (_is_text(kind) or _is_binary(kind) or embedded):
        raise InputError(
            f"column {present.image!r} of {path} is {kind}; wanted binary (a picture"
            " file's bytes) or string (its path)"
        )
    return present


def parquet_parts(file: pq.ParquetFile) -> list[tuple[int, int]]:
    """Cuts a file into ranges [first, last) of row groups, by rows and bytes."""
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
    """Reads columns of row groups [first, last); texts as bytes, UTF-8 unchecked.

    Raises:
      InputError: the file is damaged.
    """
    file = open_parquet(path)
    groups = range(first, file.metadata.num_row_groups if last is None else last)
    distinct = list(dict.fromkeys(name for name in names if name))
    batches = file.iter_batches(256, row_groups=groups, columns=distinct)
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            values = {name: _as_bytes(batch[name]).to_pylist() for name in distinct}
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} is damaged ({reason}); make it anew") from error
        nothing = [None] * len(batch)
        columns = [values[name] if name else nothing for name in names]
        yield from zip(*columns, strict=True)


def read_parquet(
    path: str,
    first: int,
    last: int,
    columns: Columns,
    language: str,
    drops: collections.Counter,
) -> Iterator[Row]:
    """Reads pairs from row groups [first, last) of a Parquet file.

    Args:
      path: of the file; paths of pictures are relative to its folder.
      first: row group.
      last: row group, exclusive.
      columns: as in the config.
      language: of rows that have none.
      drops: counts rows by the reason why they are no pairs.

    Yields:
      Rows; one a text where the texts are lists.
    """
    file = open_parquet(path)
    present = check_parquet(file, path, columns)
    names = dataclasses.astuple(present)
    paths = present.image and _is_text(
        _plain(file.schema_arrow.field(present.image).type)
    )
    folder = pathlib.Path(path).parent
    for image, url, texts, spoken in read_parquet_columns(path, names, first, last):
        if isinstance(image, dict):  # As Hugging Face's datasets store an image.
            image = image["bytes"]
        for text in texts if isinstance(texts, list) else [texts]:
            try:
                source = url.decode() if url else None
                alt_text = text.decode() if text else ""
                spoken_text = spoken.decode() if spoken else language
                location = image.decode() if image and paths else ""
            except UnicodeDecodeError:
                drops["undecodable text"] += 1
                continue
            content = None if paths else image
            if location:
                content = read_picture(folder, location, drops)
                if content is None:
                    continue
            yield content, source, alt_text, spoken_text


def check_csv(path: str, delimiter: str, encoding: str, columns: Columns) -> Columns:
    """The columns that a CSV file has; InputError where one is missing."""
    try:
        with _open_text(path, encoding) as file:
            header = next(_csv_rows(file, delimiter, collections.Counter()), [])
    except LookupError as error:
        raise InputError(f"{path}: unknown encoding {encoding!r}") from error
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as {encoding}: {error}") from error
    if not header:
        raise InputError(f"{path} is empty; wanted a first line with column names")
    try:
        return columns.among(header, path)
    except InputError as error:
        if any("\0" in name or "\ufffd" in name for name in header):
            hint = f"it is not {encoding}: set the source's field `encoding`"
            raise InputError(f"{error}; {hint}") from error
        raise


def csv_parts(path: str, delimiter: str, encoding: str) -> list[tuple[int, int]]:
    """Cuts a CSV file after its header: where each part begins, and its rows.

    A beginning is for `seek` of the file opened as text. The rows of the last part are
    0: it ends with the file.
    """
    parts = []
    with _open_text(path, encoding) as file:
        rows = _csv_rows(file, delimiter, collections.Counter())
        next(rows, None)
        while True:
            start = file.tell()
            if sum(1 for _ in itertools.islice(rows, CSV_SHARD_ROWS)) < CSV_SHARD_ROWS:
                return [*parts, (start, 0)]
            parts.append((start, CSV_SHARD_ROWS))


def read_csv(
    path: str,
    start: int,
    count: int,
    delimiter: str,
    encoding: str,
    columns: Columns,
    language: str,
    drops: collections.Counter,
) -> Iterator[Row]:
    """Reads pairs from a part of a CSV file with a header, line by line.

    Args:
      path: of the file, perhaps gzipped (`.gz`); paths of pictures are relative to
        its folder.
      start: where the part begins, of `csv_parts`.
      count: of its rows, of `csv_parts`.
      delimiter: of fields.
      encoding: of the file; a row with other bytes is dropped.
      columns: as in the config.
      language: of rows that have none.
      drops: counts rows by the reason why they are no pairs.

    Yields:
      Rows.
    """
    folder = pathlib.Path(path).parent
    with _open_text(path, encoding) as file:
        header = next(_csv_rows(file, delimiter, collections.Counter()), [])
        file.seek(start)
        rows = itertools.islice(_csv_rows(file, delimiter, drops), count or None)
        names = dataclasses.astuple(columns.among(header, path))
        places = [header.index(name) if name else None for name in names]
        for row in rows:
            if len(row) != len(header):
                drops["fields do not match the header"] += 1
                continue
            image, url, text, spoken = (
                "" if place is None else row[place] for place in places
            )
            if "\ufffd" in text + url + image:
                drops["undecodable text"] += 1
                continue
            content = read_picture(folder, image, drops) if image else None
            if content is not None or not image:
                yield content, url or None, text, spoken or language


def _open_text(path: str, encoding: str) -> TextIO:
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    opener = gzip.open if path.endswith(".gz") else open
    return opener(path, "rt", encoding=encoding, errors="replace", newline="")


def _csv_rows(
    file: TextIO, delimiter: str, drops: collections.Counter
) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    lines: Iterable[str] = iter(lambda: file.readline(2 * MAX_FIELD_CHARACTERS), "")
    rows = csv.reader(lines, delimiter=delimiter)
    while True:
        try:
            row = next(rows, None)
        except csv.Error:
            drops["bad csv row"] += 1
        except (EOFError, OSError, zlib.error, UnicodeError):
            drops["truncated file"] += 1
            return
        else:
            if row is None:
                return
            if row:
                yield row


def _as_bytes(column: pa.Array) -> pa.Array:
    """Texts as bytes, so that a bad one is met where it can be counted."""
    kind = _plain(column.type)
    if kind != column.type:
        column = column.cast(kind)
    if _is_text(kind):
        return column.cast(pa.large_binary())
    if _is_list(kind) and _is_text(kind.value_type):
        return column.cast(pa.large_list(pa.large_binary()))
    return column


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_null(kind)
    )


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
