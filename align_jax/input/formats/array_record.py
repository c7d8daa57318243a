"""The format `array_record`: ArrayRecord files of tf.train.Example messages.

A folder in TFDS's layout states its features and numbers of records. Other folders hold
files with ".array_record" or ".arrayrecord" in their names. There, each record may have
several texts, and the first record must have every feature that the config names.
ArrayRecord files have their own index.
"""

import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from align_jax import dataset_folder, places, shard_files
from align_jax.errors import InputError, one_line
from align_jax.input.formats.dataset import Dataset, ShardPart, read_in_python
from align_jax.input.formats.examples import make_parser, take_picture
from align_jax.input.formats.kept_pictures import ABSENT, KeptPictures
from align_jax.input.shards import Shard, list_shards, open_builder

if TYPE_CHECKING:
    from align_jax.input.datasets import DatasetConfig

ENDINGS = (".array_record", ".arrayrecord")
# Records that are read together, without the interpreter lock, which `read()` of single
# records holds for all its time.
TOGETHER = 16
# A range up to this size is read in the calling thread, not record by record in others.
OPTIONS = f"readahead_buffer_size:{16 * 2**20},max_parallelism:1"


def open_array_record(config: "DatasetConfig") -> Dataset:
    """Opens a dataset of ArrayRecord files.

    Raises:
      InputError: no files, a file that is damaged, cut short or in a bucket, records
        that are no tf.train.Example, or a feature that is missing or of another type.
    """
    import tensorflow as tf

    if places.is_url(config.directory):
        raise InputError(
            f"{config.directory} is a URL, and training reads ArrayRecord files from"
            " local folders only; copy the files, or mount the bucket"
        )
    directory = dataset_folder.newest_version(config.directory)
    known: Any
    if places.exists(os.path.join(directory, dataset_folder.INFO)):
        info = open_builder(directory, config.split).info
        shards = list_shards(directory, info, config.split, "array_record")
        known = info.features.tf_example_spec
        counts = shard_files.for_each(_count, [shard.path for shard in shards])
        for shard, count in zip(shards, counts, strict=True):
            if count != shard.records:
                raise InputError(
                    f"{shard.path} has {count} records, and {directory}/"
                    f"{dataset_folder.INFO} says {shard.records}; copy it again"
                )
    else:
        paths = shard_files.list_files(config.directory, ENDINGS)
        counts = shard_files.for_each(_count, paths)
        shards = [Shard(path, n) for path, n in zip(paths, counts, strict=True) if n]
        known = _find_features(shards[0].path, config) if shards else {}
    if not shards:
        raise InputError(f"{config.directory} has no records")
    failures: list[Exception] = []
    signature = {
        "record": tf.TensorSpec((None,), tf.string),
        "kept": tf.TensorSpec((None,), tf.int64),
    }

    def read(part: ShardPart) -> "tf.data.Dataset":
        name = config.image_feature if part.pictures else None
        reader = functools.partial(_read_messages, name)
        stack = functools.partial(_stack, part.pictures)
        return read_in_python(reader, signature, stack, failures)(part)

    return Dataset(shards, read, make_parser(known, config), failures)


def _read_messages(
    name: str | None, path: str, first: int, last: int
) -> Iterator[tuple[bytes | None, bytes]]:
    """Yields the records [first, last) of a file, and the pictures taken out of them.

    A picture that stays in its record is None. The feature `name` has the pictures;
    without a name all stay.
    """
    for record in _read(path, first, last):
        taken = name and take_picture(record, name)
        yield taken or (None, record)


def _stack(
    pictures: KeptPictures | None, records: list[tuple[bytes | None, bytes]]
) -> dict[str, np.ndarray]:
    """Converts N pictures and records to record and kept (N,); see `ShardPart`."""
    files, messages = zip(*records, strict=True)
    kept = np.full(len(records), ABSENT)
    taken = np.array([file is not None for file in files])
    # A group of which no picture is ever taken back would be kept to the end.
    if pictures is not None and taken.any():
        kept = np.where(taken, pictures.keep(files), ABSENT)
    return {"record": np.array(messages, object), "kept": kept}


def _open(path: str) -> Any:
    """Opens a file; raises DamagedFileError if it is no ArrayRecord file."""
    from array_record.python import array_record_module

    if not places.is_file(path):
        raise places.MissingError(f"{path} is missing")
    try:
        return array_record_module.ArrayRecordReader(path, OPTIONS)
    except (RuntimeError, ValueError) as error:
        raise dataset_folder.DamagedFileError(path, one_line(error)) from error


def _count(path: str) -> int:
    """Returns the number of records of a file, from its index."""
    reader = _open(path)
    if not reader.ok():
        reason = "cut short: its index is not there"
        raise dataset_folder.DamagedFileError(path, reason)
    return reader.num_records()


def _read(path: str, first: int, last: int) -> Iterator[bytes]:
    """Yields the records [first, last) of a file."""
    reader = _open(path)
    try:
        for begin in range(first, last, TOGETHER):
            yield from reader.read(begin, min(begin + TOGETHER, last))
    except (RuntimeError, ValueError, IndexError) as error:
        raise dataset_folder.DamagedFileError(path, one_line(error)) from error


def _find_features(path: str, config: "DatasetConfig") -> dict[str, Any]:
    """Describes the features of a file's first record, for tf.io.

    A feature that a later record lacks is an empty picture, no text or no label there.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        example = tf.train.Example.FromString(next(_read(path, 0, 1)))
    except DecodeError as error:
        raise InputError(
            f"the records of {path} are no tf.train.Example; wanted records with"
            f" {config.image_feature} and {' and '.join(config.targets)}"
        ) from error
    known: dict[str, Any] = {}
    for name, feature in example.features.feature.items():
        if feature.HasField("int64_list"):
            known[name] = tf.io.FixedLenFeature((), tf.int64, -1)
        elif feature.HasField("bytes_list") and name == config.image_feature:
            known[name] = tf.io.FixedLenFeature((), tf.string, "")
        elif feature.HasField("bytes_list"):
            known[name] = tf.io.FixedLenSequenceFeature((), tf.string, True)
        else:
            known[name] = tf.io.FixedLenSequenceFeature((), tf.float32, True)
    return known
