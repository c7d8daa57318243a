"""Pairs in CSV and TSV files with a header line, alone or in a folder of pictures."""

import collections
import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from align_jax import places
from align_jax.errors import InputError
from data.sources.config import SourceConfig, TableColumns
from data.sources.files import RawPair, SourceShard, list_files, read_inside

MAX_FIELD_CHARACTERS = 2**25
SHARD_ROWS = 2**14  # few, because they may name pictures of any size


class CsvSource:
    """CSV files, perhaps gzipped (`.gz`).

    A shard is a part of a file. `first` is a position for `seek` in the file opened as
    text; `last` is the number of rows, 0 for all that follow.
    """

    suffixes: tuple[str, ...] = (".csv", ".csv.gz")

    def __init__(self, config: SourceConfig) -> None:
        """Stores the config; reads nothing yet."""
        self.config = config
        self.columns = config.columns

    def list_shards(self) -> list[SourceShard]:
        """Cuts the files into shards of a bounded number of rows."""
        root, names = list_files(self.config, self.suffixes)
        shards = []
        for name in names:
            path = os.path.join(root, name)
            self._check(path)
            parts = self._cut(path)
            for i, (start, rows) in enumerate(parts):
                part = f"[part {i}]" if len(parts) > 1 else ""
                shards.append(SourceShard(name + part, path, start, rows))
        return shards

    def read(
        self, shard: SourceShard, drops: collections.Counter[str]
    ) -> Iterator[RawPair]:
        """Yields the pairs of a shard; picture paths are relative to the file's folder.

        A row is dropped and counted if it has another number of fields than the header,
        cannot be decoded, or names a picture file that cannot be read.
        """
        folder = pathlib.Path(shard.path).parent
        delimiter = self.delimiter(shard.path)
        with _open_text(shard.path, self.config.encoding) as file:
            header = next(_csv_rows(file, delimiter, collections.Counter()), [])
            file.seek(shard.first)
            rows = _csv_rows(file, delimiter, drops)
            present = self.columns.among(header, shard.path)
            columns = [
                header.index(name) if name else None
                for name in dataclasses.astuple(present)
            ]
            for row in itertools.islice(rows, shard.last or None):
                if len(row) != len(header):
                    drops["fields do not match the header"] += 1
                    continue
                image, url, text, language = (
                    "" if column is None else row[column] for column in columns
                )
                if "\ufffd" in text + url + image:
                    drops["undecodable text"] += 1
                    continue
                content = read_inside(folder, image, drops) if image else None
                if content is not None or not image:
                    language = language or self.config.language
                    yield RawPair(content, url or None, text, language)

    def delimiter(self, path: str) -> str:
        """Returns the character between the fields of a file."""
        return ","

    def _check(self, path: str) -> None:
        """Raises InputError if a file cannot be read or a column is missing."""
        encoding, delimiter = self.config.encoding, self.delimiter(path)
        try:
            with _open_text(path, encoding) as file:
                header = next(_csv_rows(file, delimiter, collections.Counter()), [])
        except LookupError as error:
            raise InputError(f"{path}: unknown encoding {encoding!r}") from error
        if not header:
            raise InputError(f"{path} is empty; wanted a first line with column names")
        try:
            self.columns.among(header, path)
        except InputError as error:
            if any("\0" in name or "\ufffd" in name for name in header):
                hint = f"it is not {encoding}: set the source's field `encoding`"
                raise InputError(f"{error}; {hint}") from error
            raise

    def _cut(self, path: str) -> list[tuple[int, int]]:
        """Returns (start, rows) of each part; rows is 0 for the last: all the rest."""
        parts: list[tuple[int, int]] = []
        with _open_text(path, self.config.encoding) as file:
            rows = _csv_rows(file, self.delimiter(path), collections.Counter())
            next(rows, None)
            while True:
                start = file.tell()
                if sum(1 for _ in itertools.islice(rows, SHARD_ROWS)) < SHARD_ROWS:
                    return [*parts, (start, 0)]
                parts.append((start, SHARD_ROWS))


class TsvSource(CsvSource):
    """TSV files, perhaps gzipped (`.gz`)."""

    suffixes = (".tsv", ".tsv.gz")

    def delimiter(self, path: str) -> str:
        """Returns the character between the fields of a file."""
        return "\t"


class FolderSource(CsvSource):
    """A folder of pictures and a CSV or TSV file with a column `path`."""

    suffixes = CsvSource.suffixes + TsvSource.suffixes

    def __init__(self, config: SourceConfig) -> None:
        """Stores the config; reads nothing yet."""
        super().__init__(config)
        if self.columns.image == TableColumns.image:
            self.columns = dataclasses.replace(self.columns, image="path")

    def list_shards(self) -> list[SourceShard]:
        """Cuts the folder's tables into shards of a bounded number of rows.

        Raises:
          InputError: the path is not a folder, or `CsvSource` refuses a table.
        """
        if not places.local_path(self.config.path).is_dir():
            raise InputError(
                f"no folder {self.config.path}; wanted one of pictures and a CSV"
            )
        return super().list_shards()

    def delimiter(self, path: str) -> str:
        """Returns the character between the fields of a file."""
        return "\t" if ".tsv" in pathlib.Path(path).suffixes else ","


@contextlib.contextmanager
def _open_text(path: str, encoding: str) -> Iterator[TextIO]:
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(places.opening(path))
        if path.endswith(".gz"):
            file = stack.enter_context(gzip.open(file))
        text = io.TextIOWrapper(file, encoding, errors="replace", newline="")
        yield stack.enter_context(text)


def _csv_rows(
    file: TextIO, delimiter: str, drops: collections.Counter[str]
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
