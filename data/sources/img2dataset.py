"""Pairs in the output folder of img2dataset, in any of its output formats."""

import collections
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from align_jax.errors import InputError
from align_jax.tars import IMAGE_SUFFIXES
from data.sources.config import SourceConfig
from data.sources.files import (
    UID,
    RawPair,
    SourceShard,
    decode_pair,
    list_files,
    read_inside,
    with_uid,
)
from data.sources.parquet_tables import open_parquet, read_parquet_columns
from data.sources.tars import Sample, make_pairs, read_samples

BAD_RECORD = "bad tfrecord"


class Img2datasetSource:
    """The output of img2dataset.

    A shard is one metadata table, NNNNN.parquet, with its pictures.
    """

    def __init__(self, config: SourceConfig) -> None:
        """Stores the config; reads nothing yet."""
        self.config = config

    def list_shards(self) -> list[SourceShard]:
        """Lists the metadata tables.

        Raises:
          InputError: no table exists, or one is damaged or without pictures.
        """
        root, names = list_files(self.config, (".parquet",))
        shards = [SourceShard(name, os.path.join(root, name)) for name in names]
        for shard in shards:
            _check(shard.path)
        return shards

    def read(
        self, shard: SourceShard, drops: collections.Counter[str]
    ) -> Iterator[RawPair | None]:
        """Yields the pairs of a shard.

        The text is the column `text_column`, else "caption" or "txt"; a list of texts
        gives one pair per text. In output of the format "webdataset" it is as
        `make_pairs` says. A picture that img2dataset could not download is counted by
        its status, and one that the table lists but that does not exist as missing.
        """
        table = pathlib.Path(shard.path)
        names = open_parquet(shard.path).schema_arrow.names
        downloaded = 0
        for (status,) in read_parquet_columns(shard.path, ["status"]):
            status = (status or b"").decode(errors="replace")
            downloaded += status == "success"
            if status != "success":
                known = re.fullmatch("[a-z_]{1,40}", status)
                drops[f"img2dataset: {status if known else 'other status'}"] += 1
                yield None
        packing = _packing(table, names)
        rows: Iterator[Sample | tuple[bytes, dict[str, Any]] | str]
        if packing == "webdataset":
            rows = read_samples(str(table.with_suffix(".tar")))
        elif packing == "tfrecord":
            rows = _tfrecord_rows(table.with_suffix(".tfrecord"))
        else:
            rows = _table_rows(table, names, packing)
        for row in rows:
            if isinstance(row, str):
                downloaded -= row == BAD_RECORD
                drops[row] += 1
                yield None
            elif isinstance(row, dict):
                downloaded -= 1
                yield from make_pairs(row, self.config, drops)
            else:
                downloaded -= 1
                yield from self._pairs(row, drops)
        for _ in range(downloaded):
            drops["image file missing"] += 1
            yield None

    def _pairs(
        self, row: tuple[bytes, dict[str, Any]], drops: collections.Counter[str]
    ) -> Iterator[RawPair | None]:
        """Yields the pairs of a picture and the fields of its row."""
        image, fields = row
        names = (self.config.text_column, "caption", "txt")
        text: Any = next(
            (t for name in names if (t := fields.get(name)) is not None), []
        )
        if text == []:
            drops["no text"] += 1
            yield None
        url = fields.get("url") or b""
        default = self.config.language.encode()
        language = fields.get(self.config.language_column) or default
        for one in text if isinstance(text, list) else [text]:
            pair = decode_pair(image, url, one or b"", language, drops)
            yield with_uid(pair, fields.get(UID))


def _check(path: str) -> None:
    """Raises InputError if a file is no metadata table or its pictures are missing."""
    try:
        found = open_parquet(path).schema_arrow.names
    except InputError as error:
        raise InputError(
            f"{error}; img2dataset was stopped before this shard was whole: run it"
            " again with --incremental_mode=incremental, or remove the shard's files"
        ) from error
    wrong = [name for name in ("key", "status") if found.count(name) != 1]
    wrong += sorted({name for name in found if found.count(name) > 1} - {*wrong})
    if wrong:
        raise InputError(
            f"{path} has the columns {found}; img2dataset's output has each of {wrong}"
            " once"
        )
    _packing(pathlib.Path(path), found)


def _packing(path: pathlib.Path, names: list[str]) -> str:
    """Returns the `output_format` in which img2dataset wrote a shard's pictures.

    Args:
      path: path of the metadata table.
      names: column names of the metadata table.

    Returns:
      One of "parquet", "webdataset", "tfrecord" and "files".

    Raises:
      InputError: no pictures exist.
    """
    if any(name in names for name in IMAGE_SUFFIXES):
        return "parquet"
    for packing, name in (
        ("webdataset", f"{path.stem}.tar"),
        ("tfrecord", f"{path.stem}.tfrecord"),
        ("files", path.stem),
    ):
        if (path.parent / name).exists():
            return packing
    raise InputError(
        f"no pictures beside {path}: wanted {path.stem}.tar, {path.stem}.tfrecord, a"
        f" folder {path.stem} or a column 'jpg'"
    )


def _table_rows(
    table: pathlib.Path, names: list[str], packing: str
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields the pictures that exist, and the fields of their rows."""
    images = [name for name in IMAGE_SUFFIXES if name in names]
    folder = table.with_suffix("")
    files = _picture_files(folder) if packing == "files" else {}
    for values in read_parquet_columns(str(table), names):
        fields = dict(zip(names, values, strict=True))
        if fields["status"] != b"success":
            continue
        if packing == "files":
            key = fields["key"]
            name = files.get(
                key.decode(errors="replace") if isinstance(key, bytes) else key
            )
            # One that cannot be read is counted with those that do not exist.
            image = read_inside(folder, name, collections.Counter()) if name else None
        else:
            image = next((fields[n] for n in images if fields[n] is not None), None)
        if image is not None:
            yield image, fields


def _picture_files(folder: pathlib.Path) -> dict[str | int, str]:
    """Returns the names of the picture files by key, and by the number that a key is.

    Another program that rewrote the table may have made numbers of the keys.
    """
    files: dict[str | int, str] = {}
    for name in sorted(os.listdir(folder)):
        key, _, suffix = name.rpartition(".")
        if suffix.lower() in IMAGE_SUFFIXES:
            files.setdefault(key, name)
            if key.isdecimal():
                files.setdefault(int(key), name)
    return files


def _tfrecord_rows(
    path: pathlib.Path,
) -> Iterator[tuple[bytes, dict[str, Any]] | str]:
    """Yields pictures and the fields of their records; a reason if the file is cut."""
    import tensorflow as tf  # slow to import, and only for this format
    from google.protobuf.message import DecodeError

    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    while True:
        try:
            record = next(records, None)
        except (tf.errors.DataLossError, tf.errors.OutOfRangeError):
            yield "truncated tfrecord"
            return
        if record is None:
            return
        try:
            example = tf.train.Example.FromString(record)
        except DecodeError:
            yield BAD_RECORD
            continue
        fields = {
            name: feature.bytes_list.value[0]
            for name, feature in example.features.feature.items()
            if feature.bytes_list.value
        }
        image = next((fields[n] for n in IMAGE_SUFFIXES if n in fields), None)
        if image is not None:
            yield image, fields
