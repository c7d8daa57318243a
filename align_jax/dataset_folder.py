"""Opens dataset folders in TFDS's layout; damage is an InputError that says where."""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from align_jax import places
from align_jax.errors import InputError, one_line

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

INFO, FEATURES = "dataset_info.json", "features.json"
MANIFEST = "manifest.json"  # file of a corpus that states the sizes of its shards
SHARD = {"name": str, "records": int, "bytes": int, "sha256": str}  # a manifest's entry
LONGEST = 300  # characters of the reason in a message


class DamagedFileError(InputError):
    """A file of a dataset is missing or damaged.

    Attributes:
      path: path or URL of the file.
      reason: description of the damage.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that workers can pickle it
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        folder = shlex.quote(os.path.dirname(self.path))
        return (
            f"{self.path} is damaged: {self.reason}; copy it again, or run `python -m"
            f" data.doctor {folder}`, which says how to write it again"
        )


def newest_version(directory: places.Place) -> str:
    """Returns the subfolder of a dataset's newest version, such as DIRECTORY/1.0.2.

    Without subfolders that are named as versions, it returns the folder itself.
    """
    folder = places.resolve(directory)
    found = places.list_names(folder) if places.is_folder(folder) else []
    versions = [name for name in found if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    if not versions:
        return folder
    newest = max(versions, key=lambda name: [*map(int, name.split("."))])
    return os.path.join(folder, newest)


def open_folder(directory: places.Place) -> "tfds.core.DatasetBuilder":
    """Opens a dataset with TFDS.

    Args:
      directory: path or URL of the folder that holds dataset_info.json.

    Raises:
      DamagedFileError: dataset_info.json or features.json is missing or damaged.
    """
    import tensorflow_datasets as tfds

    folder = os.fspath(directory)
    info, features = (os.path.join(folder, name) for name in (INFO, FEATURES))
    for path in (info, features):
        _read(path)
    path = features
    try:
        tfds.features.FeaturesDict.from_config(folder)
        path = info
        builder = tfds.builder_from_directory(folder)
        for split in builder.info.splits.values():
            if min(map(int, split.shard_lengths), default=0) < 0:
                raise ValueError(f"a shard of split {split.name!r} has a negative size")
    except Exception as error:  # TFDS and protobuf have no common error class
        raise DamagedFileError(path, _reason(error)) from error
    return builder


def records_by_shard(split: "tfds.core.SplitInfo") -> dict[str, int]:
    """Returns the number of records of each shard of a split, by path or URL."""
    paths, records = map(str, split.filepaths), map(int, split.shard_lengths)
    return dict(zip(paths, records, strict=True))


def read_manifest(directory: places.Place) -> dict[str, Any]:
    """Reads a corpus's manifest; {} if the dataset has none.

    Raises:
      DamagedFileError: the file is damaged, or a shard in it lacks one of `SHARD`.
    """
    path = os.path.join(directory, MANIFEST)
    if not places.exists(path):
        return {}
    manifest = _read(path)
    shards = manifest.get("shards", [])
    if not isinstance(shards, list) or not all(map(_is_shard, shards)):
        raise DamagedFileError(path, f"wanted {', '.join(SHARD)} of each shard")
    return manifest


@contextmanager
def reading_records(count_records: Callable[[], Mapping[str, int]]) -> Iterator[None]:
    """Turns TensorFlow's errors about damaged records into InputErrors.

    TensorFlow does not name the file, so the shards are read again until one fails.

    Args:
      count_records: function that returns the number of records that each shard must
        have, 0 if it is not known, by the path or URL of each shard that may be
        damaged, one or more; it is called after an error.

    Raises:
      DamagedFileError: a record inside the `with` statement is damaged, or its file is
        cut short or missing, or has fewer records.
      InputError: the storage refuses to read, or a record lacks a feature of
        features.json.
    """
    import tensorflow as tf

    try:
        yield
    except (tf.errors.OpError, UnicodeDecodeError) as error:  # a message is no UTF-8
        shards = count_records()
        for shard, least in shards.items():
            if failure := _read_to_end(shard, least):
                if _is_refusal(failure):
                    reason = _reason(failure)
                    raise InputError(f"{shard} cannot be read: {reason}") from error
                raise DamagedFileError(shard, _reason(failure)) from error
        folders = " or ".join(dict.fromkeys(map(os.path.dirname, shards)))
        if _is_refusal(error):
            reason = _reason(error)
            raise InputError(f"{folders} cannot be read: {reason}") from error
        if not isinstance(error, tf.errors.InvalidArgumentError):
            raise
        raise InputError(
            f"a record of {folders} has other features than {FEATURES} says:"
            f" {_reason(error)}; prepare the dataset again"
        ) from error


def _read_to_end(shard: str, least: int) -> Exception | None:
    """Reads a shard to its end; returns the error that stopped it, or None.

    An end before the record number `least` is an error, too.
    """
    import tensorflow as tf

    count = 0
    try:
        for record in _read_records(shard):
            tf.train.Example.FromString(record)
            count += 1
    except Exception as error:  # of TensorFlow or protobuf
        return error
    if count < least:
        return ValueError(f"it has {count} records; wanted {least}")
    return None


def _is_refusal(error: Exception) -> bool:
    """Returns whether an error of TensorFlow says nothing about a file's content."""
    import tensorflow as tf

    refusals = (
        tf.errors.AbortedError,
        tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError,
        tf.errors.PermissionDeniedError,
        tf.errors.UnauthenticatedError,
        tf.errors.UnavailableError,
    )
    return isinstance(error, refusals)


def _read_records(shard: str) -> Iterator[bytes]:
    """Yields the records of a TFRecord file, or of an ArrayRecord file by its name."""
    import tensorflow as tf

    if ".array" not in os.path.basename(shard):
        yield from tf.data.TFRecordDataset(shard).as_numpy_iterator()
        return
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(shard)
    for number in range(reader.num_records()):
        yield from reader.read([number])


def _reason(error: Exception) -> str:
    """Returns the message of an error without the names of TensorFlow's operations."""
    said = re.sub(r"\{\{.*?\}\}|\[\[?(\{\{|Op:).*", "", one_line(error))
    return said.strip()[:LONGEST]


def _is_shard(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), kind) for name, kind in SHARD.items()
    )


def _read(path: str) -> dict[str, Any]:
    """Reads a JSON object; raises DamagedFileError if it is missing or damaged."""
    try:
        return places.read_object(path)
    except places.MissingError as error:
        raise DamagedFileError(path, "no such file") from error
    except InputError as error:
        if not isinstance(error.__cause__, None | ValueError | RecursionError):
            raise  # the storage refuses to read
        reason = " ".join(str(error.__cause__ or error).split())
        raise DamagedFileError(path, reason[:LONGEST]) from error
