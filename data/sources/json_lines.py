"""Pairs in files of JSON lines, as {"url": "...", "alt_text": "..."}."""

import collections
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from align_jax import places
from data.sources.config import SourceConfig
from data.sources.files import RawPair, SourceShard, list_files, read_inside

MAX_LINE_BYTES = 2**26
SHARD_BYTES = 2**25  # of a file that is not compressed


class JsonLinesSource:
    """Files of JSON lines, perhaps gzipped (`.gz`).

    A shard is a file, or the lines that begin in the range [first, last) of its bytes.
    """

    def __init__(self, config: SourceConfig) -> None:
        """Stores the config; reads nothing yet."""
        self.config = config

    def list_shards(self) -> list[SourceShard]:
        """Lists the files; one that is not compressed is cut at bounds of bytes."""
        suffixes = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
        root, names = list_files(self.config, suffixes)
        shards = []
        for name in names:
            path = os.path.join(root, name)
            size = pathlib.Path(path).stat().st_size
            packed = name.lower().endswith(".gz")
            for first in range(0, 1 if packed else max(size, 1), SHARD_BYTES):
                last = 0 if packed else first + SHARD_BYTES
                part = f"[{first}:{last}]" if last and size > SHARD_BYTES else ""
                shards.append(SourceShard(name + part, path, first, last))
        return shards

    def read(
        self, shard: SourceShard, drops: collections.Counter[str]
    ) -> Iterator[RawPair | None]:
        """Yields the pairs of a shard; a list of texts gives one pair per text.

        Paths of pictures are relative to the file's folder. Blank lines are no rows.
        """
        for line in _lines(shard):
            fields = _parse(line)
            if isinstance(fields, str):
                drops[fields] += 1
                yield None
                continue
            texts = fields.get(self.config.text_column)
            for text in texts if isinstance(texts, list) and texts else [texts]:
                yield self._pair(fields, text, shard, drops)

    def _pair(
        self,
        fields: dict[str, Any],
        text: Any,
        shard: SourceShard,
        drops: collections.Counter[str],
    ) -> RawPair | None:
        """Returns the pair of an object and one of its texts, or counts a drop."""
        columns = self.config.columns
        if not isinstance(text, str):
            drops["no text"] += 1
            return None
        path, url, language = (
            value if isinstance(value := fields.get(name), str) else ""
            for name in (columns.image, columns.url, columns.language)
        )
        image = None
        if path:
            image = read_inside(pathlib.Path(shard.path).parent, path, drops)
            if image is None:
                return None
        return RawPair(image, url or None, text, language or self.config.language)


def _lines(shard: SourceShard) -> Iterator[bytes | None]:
    """Yields the lines of a shard that are not blank, and None where the file is cut.

    A line is cut to MAX_LINE_BYTES + 1.
    """
    packed = shard.path.lower().endswith(".gz")
    with places.opening(shard.path) as opened, gzip.open(opened) as unpacked:
        file = unpacked if packed else opened
        try:
            if shard.first:  # the line before may end exactly there
                file.seek(shard.first - 1)
                _read_line(file)
            while not shard.last or file.tell() < shard.last:
                line = _read_line(file)
                if not line:
                    return
                if line.strip():
                    yield line
        except (EOFError, OSError, zlib.error):
            yield None


def _read_line(file: Any) -> bytes:
    line = part = file.readline(MAX_LINE_BYTES + 1)
    while len(part) > MAX_LINE_BYTES and not part.endswith(b"\n"):
        part = file.readline(MAX_LINE_BYTES + 1)
    return line


def _parse(line: bytes | None) -> dict[str, Any] | str:
    """Returns the object of a line, or why there is none."""
    if line is None:
        return "truncated file"
    if len(line) > MAX_LINE_BYTES:
        return "too long a line"
    try:
        fields = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError:
        return "undecodable text"
    except (ValueError, RecursionError):
        return "bad json"
    return fields if isinstance(fields, dict) else "bad json"
