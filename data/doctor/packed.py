"""Tars, Parquet and ArrayRecord files that are not in TFDS's layout, for the doctor."""

import collections
import pathlib
from collections.abc import Iterator

from align_jax import places, shard_files, tar_index
from align_jax.errors import InputError
from data.doctor.records import READERS, ShardReader, local_copy
from data.records.records import make_example
from data.sources.config import SourceConfig
from data.sources.files import SourceShard
from data.sources.parquet_tables import open_parquet
from data.sources.source import SOURCES

# Names of columns, of which the first one that a file has is read.
IMAGES, TEXTS = ("image", "jpg"), ("text", "caption", "alt_text", "txt", "captions")


def make_reader(file_format: str, text: str = "") -> ShardReader:
    """Returns the function that reads a shard as tf.train.Example messages.

    Args:
      file_format: one of `data.doctor.files.PACKED`.
      text: column of a Parquet file with the texts, or field of a tar's json; "" for
        the first one of `TEXTS`, or for a tar's .txt or "caption".
    """
    if file_format in READERS:
        return READERS[file_format]

    def read(
        path: pathlib.Path, damaged: list[tuple[int, str]]
    ) -> Iterator[tuple[int, bytes]]:
        number = 0
        drops: collections.Counter[str] = collections.Counter()
        with local_copy(path) as local:
            try:
                config, last = _configure(file_format, local, text)
                shard = SourceShard(path.name, str(local), 0, last)
                for pair in SOURCES[file_format](config).read(shard, drops):
                    if pair is None:
                        damaged.append((number, next(iter(drops), "not used")))
                        drops.clear()
                    else:
                        texts = (pair.alt_text or "").encode()
                        yield number, make_example(image=pair.image or b"", text=texts)
                    number += 1
            except InputError as error:
                damaged.append((number, str(error).replace(str(local), path.name)))

    return read


def _configure(
    file_format: str, path: pathlib.Path, text: str
) -> tuple[SourceConfig, int]:
    """Returns the config of a file's source, and the file's number of row groups."""
    if file_format == "webdataset":
        return SourceConfig(file_format, str(path), text_column=text or "caption"), 0
    file = open_parquet(path)
    names = file.schema_arrow.names
    columns = [
        next((name for name in wanted if name in names), wanted[0])
        for wanted in (IMAGES, (text,) if text else TEXTS)
    ]
    config = SourceConfig(
        file_format, str(path), image_column=columns[0], text_column=columns[1]
    )
    return config, file.metadata.num_row_groups


def count_records(file_format: str, path: pathlib.Path) -> int:
    """Returns the number of records of a file; 0 if it is damaged."""
    try:
        if file_format == "webdataset":
            return len(tar_index.scan_tar(str(path)).offsets)
        if file_format == "parquet":
            with places.opening(path) as file:
                source = shard_files.Seekable(file)
                return open_parquet(source, path.name).metadata.num_rows
    except InputError:
        return 0
    from array_record.python import array_record_module

    with local_copy(path) as local:
        try:
            return array_record_module.ArrayRecordReader(str(local)).num_records()
        except (RuntimeError, ValueError):
            return 0
