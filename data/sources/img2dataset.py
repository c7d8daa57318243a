"""Pairs in the output folder of img2dataset, in any of its output formats."""

import collections
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from align_jax.errors import InputError
from data.sources.config import SourceConfig
from data.sources.files import (
    RawPair,
    SourceShard,
    decode_pair,
    list_files,
    read_inside,
)
from data.sources.parquet_tables import open_parquet, read_parquet_columns
from data.sources.tars import IMAGE_SUFFIXES, read_tar


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
    ) -> Iterator[RawPair]:
        """Yields the pairs of a shard.

        The text is the column `text_column`, else "caption" or "txt"; in output of the
        format "webdataset" it is as `read_tar` says. A picture that img2dataset could
        not download is counted by its status.
        """
        table = pathlib.Path(shard.path)
        names = open_parquet(shard.path).schema_arrow.names
        for (status,) in read_parquet_columns(shard.path, ["status"]):
            status = (status or b"").decode(errors="replace")
            if status != "success":
                known = re.fullmatch("[a-z_]{1,40}", status)
                drops[f"img2dataset: {status if known else 'other status'}"] += 1
        packing = _packing(table, names)
        if packing == "webdataset":
            yield from read_tar(str(table.with_suffix(".tar")), self.config, drops)
            return
        if packing == "tfrecord":
            rows = _tfrecord_rows(table.with_suffix(".tfrecord"), drops)
        else:
            rows = _table_rows(table, names, packing, drops)
        wanted = (self.config.text_column, "caption", "txt")
        default = self.config.language.encode()
        for image, fields in rows:
            texts = [fields.get(name) for name in wanted]
            text = next((value for value in texts if value is not None), None)
            if text is None:
                drops["no text"] += 1
                continue
            url = fields.get("url") or b""
            language = fields.get(self.config.language_column) or default
            yield from decode_pair(image, url, text, language, drops)


def _check(path: str) -> None:
    """Raises InputError if a file is no metadata table or its pictures are missing."""
    try:
        found = open_parquet(path).schema_arrow.names
    except InputError as error:
        raise InputError(
            f"{error}; img2dataset was stopped before this shard was whole: run it"
            " again with --incremental_mode=incremental, or remove the shard's files"
        ) from error
    missing = [name for name in ("key", "status") if name not in found]
    if missing:
        raise InputError(
            f"{path} lacks the columns {missing} of img2dataset's output; it has"
            f" {found}"
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
    table: pathlib.Path, names: list[str], packing: str, drops: collections.Counter[str]
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    images = [name for name in IMAGE_SUFFIXES if name in names]
    folder = table.with_suffix("")
    for values in read_parquet_columns(str(table), names):
        fields = dict(zip(names, values, strict=True))
        if fields["status"] != b"success":
            continue
        if packing == "files":
            key = (fields["key"] or b"").decode(errors="replace")
            found = [s for s in IMAGE_SUFFIXES if (folder / f"{key}.{s}").exists()]
            image = read_inside(folder, f"{key}.{[*found, 'jpg'][0]}", drops)
        else:
            image = next((fields[n] for n in images if fields[n] is not None), None)
            drops["image file missing"] += image is None
        if image is not None:
            yield image, fields


def _tfrecord_rows(
    path: pathlib.Path, drops: collections.Counter[str]
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    import tensorflow as tf  # slow to import, and only for this format
    from google.protobuf.message import DecodeError

    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    while True:
        try:
            record = next(records, None)
        except (tf.errors.DataLossError, tf.errors.OutOfRangeError):
            drops["truncated tfrecord"] += 1
            return
        if record is None:
            return
        try:
            example = tf.train.Example.FromString(record)
        except DecodeError:
            drops["bad tfrecord"] += 1
            continue
        fields = {
            name: feature.bytes_list.value[0]
            for name, feature in example.features.feature.items()
            if feature.bytes_list.value
        }
        image = next((fields[n] for n in IMAGE_SUFFIXES if n in fields), None)
        if image is None:
            drops["image file missing"] += 1
        else:
            yield image, fields
