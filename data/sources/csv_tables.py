"""Pairs in CSV and TSV files, alone or in a folder of pictures.

CSV is read strictly. Quotation marks follow RFC 4180, or the row is dropped and
counted, and reading continues in the line after its first one. So a mark that is never
closed costs one row. TSV has no quoting, as in the published data sets: a line is a
row, and a quotation mark is text.
"""

import collections
import contextlib
import csv
import dataclasses
import gzip
import io
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, TextIO

from align_jax import places
from align_jax.errors import InputError
from data.sources.config import SourceConfig, TableColumns
from data.sources.files import RawPair, SourceShard, list_files, read_inside

MAX_FIELD_CHARACTERS = 2**25
MAX_ROW_LINES = 256  # of a CSV row; bounds how often a line is read again
SHARD_ROWS = 2**14  # few, because they may name pictures of any size


class CsvSource:
    """CSV files, perhaps gzipped (`.gz`).

    A shard is a part of a file. `first` is a position for `seek` in the file opened as
    text; `last` is the number of undamaged rows, 0 for all that follow.
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
    ) -> Iterator[RawPair | None]:
        """Yields the pair of each row; picture paths are relative to the file's folder.

        A row is dropped and counted if it is no CSV, has another number of fields than
        the header, cannot be decoded, or names a picture file that cannot be read.
        """
        delimiter = self.delimiter(shard.path)
        with _open_text(shard.path, self.config.encoding, delimiter) as file:
            rows = _Rows(file, delimiter)
            header = self._header(rows)
            file.seek(shard.first)
            present = self.columns.among(header, shard.path)
            columns = [
                header.index(name) if name else None
                for name in dataclasses.astuple(present)
            ]
            undamaged = 0
            for row in rows:
                if isinstance(row, str):
                    drops[row] += 1
                    yield None
                    continue
                yield self._pair(row, len(header), columns, shard, drops)
                undamaged += 1
                if undamaged == shard.last:
                    return

    def _pair(
        self,
        row: list[str],
        fields: int,
        columns: list[int | None],
        shard: SourceShard,
        drops: collections.Counter[str],
    ) -> RawPair | None:
        """Returns the pair of a row, or None after counting why there is none.

        Args:
          row: the fields of the row.
          fields: number of fields that a row must have.
          columns: indices of image, url, text and language in the row, or None.
          shard: shard of the row.
          drops: counter of the reasons why rows give no pair.
        """
        if len(row) != fields:
            drops["fields do not match the header"] += 1
            return None
        image, url, text, language = (
            "" if column is None else row[column] for column in columns
        )
        if "\ufffd" in text + url + image:
            drops["undecodable text"] += 1
            return None
        content = None
        if image:
            content = read_inside(pathlib.Path(shard.path).parent, image, drops)
            if content is None:
                return None
        return RawPair(content, url or None, text, language or self.config.language)

    def delimiter(self, path: str) -> str:
        """Returns the character between the fields of a file."""
        return ","

    def _header(self, rows: "_Rows") -> list[str]:
        """Returns the names of the columns; reads the first row if it holds them."""
        if self.config.header:
            return [*self.config.header]
        first = next(rows, [])
        return [] if isinstance(first, str) else first

    def _check(self, path: str) -> None:
        """Raises InputError if a file cannot be read or a column is missing."""
        encoding, delimiter = self.config.encoding, self.delimiter(path)
        try:
            with _open_text(path, encoding, delimiter) as file:
                header = self._header(_Rows(file, delimiter))
        except LookupError as error:
            raise InputError(f"{path}: unknown encoding {encoding!r}") from error
        if not header:
            raise InputError(
                f"{path} is empty or its first line is damaged; wanted a line with"
                " column names"
            )
        try:
            self.columns.among(header, path)
        except InputError as error:
            hint = "if its first line is data, name its columns in the field `header`"
            if any("\0" in name or "\ufffd" in name for name in header):
                hint = f"it is not {encoding}: set the source's field `encoding`"
            raise InputError(f"{error}; {hint}") from error

    def _cut(self, path: str) -> list[tuple[int, int]]:
        """Returns (start, rows) of each part; rows is 0 for the last: all the rest."""
        parts: list[tuple[int, int]] = []
        delimiter = self.delimiter(path)
        with _open_text(path, self.config.encoding, delimiter) as file:
            rows = _Rows(file, delimiter)
            self._header(rows)
            while True:
                start, undamaged = file.tell(), 0
                for row in rows:
                    undamaged += not isinstance(row, str)
                    # A part ends where no line waits to be read again.
                    if undamaged >= SHARD_ROWS and rows.may_end_after(row):
                        break
                else:
                    return [*parts, (start, 0)]
                parts.append((start, undamaged))


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
        return "\t" if path.lower().endswith(TsvSource.suffixes) else ","


@contextlib.contextmanager
def _open_text(path: str, encoding: str, delimiter: str) -> Iterator[TextIO]:
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(places.opening(path))
        if path.lower().endswith(".gz"):
            file = stack.enter_context(gzip.open(file))
        # A carriage return within a line of TSV is text.
        newline = "\n" if delimiter == "\t" else ""
        text = io.TextIOWrapper(file, encoding, errors="replace", newline=newline)
        yield stack.enter_context(text)


class _Rows(Iterator[list[str] | str]):
    """The rows of an opened file: their fields, or why there are none.

    Blank lines are no rows. A file that is cut short ends with one row more, the reason
    "truncated file".
    """

    def __init__(self, file: TextIO, delimiter: str) -> None:
        csv.field_size_limit(MAX_FIELD_CHARACTERS)
        self._file, self._delimiter = file, delimiter
        self._again: collections.deque[str] = collections.deque()
        self._ends = self._is_cut = False

    def may_end_after(self, row: list[str] | str) -> bool:
        """Returns whether a shard may end after `row`, the last one that was read."""
        return not self._again and not isinstance(row, str)

    def __next__(self) -> list[str] | str:
        read = self._split if self._delimiter == "\t" else self._parse
        while line := self._line():
            if len(line) >= 2 * MAX_FIELD_CHARACTERS:
                return "too long a line"
            if line.strip("\r\n"):
                return read(line)
        if not self._is_cut:
            raise StopIteration
        self._is_cut = False
        return "truncated file"

    def _line(self) -> str:
        """Returns the next line, "" at the end; a long one is cut to the bound."""
        if self._again:
            return self._again.popleft()
        if self._ends:
            return ""
        bound = 2 * MAX_FIELD_CHARACTERS
        try:
            line = part = self._file.readline(bound)
            while len(part) == bound and not part.endswith(("\n", "\r")):
                part = self._file.readline(bound)
            return line
        except (EOFError, OSError, zlib.error, UnicodeError):
            self._is_cut = self._ends = True
            return ""

    def _split(self, line: str) -> list[str] | str:
        """Returns the fields of a line of TSV."""
        fields = line.removesuffix("\n").removesuffix("\r").split("\t")
        if max(map(len, fields)) > MAX_FIELD_CHARACTERS:
            return "bad tsv row"
        return fields

    def _parse(self, line: str) -> list[str] | str:
        """Returns the fields of the row of CSV that begins with a line.

        If it is none, its other lines are read again, as rows of their own.
        """
        lines = [line]

        def more() -> Iterator[str]:
            yield line
            for _ in range(MAX_ROW_LINES - 1):
                lines.append(self._line())
                if not lines[-1]:
                    return
                yield lines[-1]

        try:
            return next(csv.reader(more(), delimiter=self._delimiter, strict=True))
        except csv.Error:
            self._again.extendleft(reversed([line for line in lines[1:] if line]))
            return "bad csv row"
