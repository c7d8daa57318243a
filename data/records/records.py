"""The record format, which this package writes and training reads.

A dataset is a folder in TFDS's layout, so `tfds.builder_from_directory` opens it:

    features.json, dataset_info.json
    <name>-<split>.tfrecord-00000-of-00016, ...    tf.train.Example records

A record of a corpus is one pair: `image` (the bytes of the picture file, unchanged
unless `config.max_image_side` reduces it), `text` (normalised), `image_id` and `key`.
A corpus may have captions beside the texts, in one more feature, a list.
The key is a pseudo-random signed 64-bit number. Pairs are sorted by key over all
shards, hence shuffled. The folder of a corpus also holds `vocabulary.txt` and
`manifest.json` (shards with counts and hashes, the rules' report, config and versions).

ArrayRecord files, which Grain reads too (`tfds.data_source`), hold the same records;
their names have `array_record` instead of `tfrecord`.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from align_jax import places
from align_jax.errors import InputError, one_line
from data.records.stages import materialise


@dataclasses.dataclass(frozen=True)
class WrittenShard:
    """File name, number of records, size and SHA-256 (in hex) of a written shard."""

    name: str
    records: int
    bytes: int
    sha256: str


def image_feature() -> tfds.features.Image:
    """Returns the feature of a picture of any size, which TFDS decodes as RGB."""
    return tfds.features.Image(shape=(None, None, 3))


def corpus_features(captions: str = "") -> tfds.features.FeaturesDict:
    """Returns the features of a corpus record.

    Args:
      captions: name of a list of further texts; empty for none.
    """
    features = {
        "image": image_feature(),
        "text": tfds.features.Text(),
        "image_id": tfds.features.Text(),
        "key": tf.int64,
    }
    if captions:
        features[captions] = tfds.features.Sequence(tfds.features.Text())
    return tfds.features.FeaturesDict(features)


def make_example(**values: bytes | int | Sequence[bytes]) -> bytes:
    """Serializes one record as a tf.train.Example.

    Args:
      **values: features by name; a feature is bytes, a list of bytes or one integer.
    """
    features = {}
    for name, value in values.items():
        if isinstance(value, int):
            kind = tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        else:
            items = [value] if isinstance(value, bytes) else value
            kind = tf.train.Feature(bytes_list=tf.train.BytesList(value=items))
        features[name] = kind
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def shard_name(
    name: str, split: str, index: int, shards: int, file_format: str = "tfrecord"
) -> str:
    """Returns the file name of shard `index`, from 0, of a split in TFDS's layout."""
    return f"{name}-{split}.{file_format}-{index:05}-of-{shards:05}"


def write_split(
    directory: pathlib.Path,
    name: str,
    split: str,
    examples: Iterable[bytes],
    count: int,
    shards: int,
) -> list[WrittenShard]:
    """Writes `count` records, in order, to TFRecord files of nearly equal length.

    Args:
      directory: folder of the dataset, made if missing; files of the split that an
        earlier attempt left are replaced.
      name: name of the dataset.
      split: name of the split.
      examples: serialized records; those after the first `count` are not read.
      count: number of records to write.
      shards: number of files.

    Returns:
      The facts about each file, in order.

    Raises:
      InputError: fewer than `count` examples, or a disk that cannot be written.
    """
    places.make_folder(directory)
    source = iter(examples)
    written = []
    for index in range(shards):
        records = (index + 1) * count // shards - index * count // shards
        path = directory / shard_name(name, split, index, shards)
        places.remove(path)  # what `write_shard` would keep
        write_shard(path, _take(source, records, f"split {split!r} of {name}"))
        written.append(describe_shard(path, records))
    return written


def _take(source: Iterator[bytes], count: int, where: str) -> Iterator[bytes]:
    """Yields the next `count` records; InputError if there are fewer."""
    for taken in range(count):
        try:
            yield next(source)
        except StopIteration:
            missing = f"{where} ends {count - taken} records too early"
            raise InputError(f"{missing}; download its source again") from None


def write_shard(
    path: pathlib.Path, examples: Iterable[bytes], file_format: str = "tfrecord"
) -> None:
    """Writes serialized records to a file atomically, unless `path` exists."""

    def write(temporary: pathlib.Path) -> None:
        with contextlib.closing(WRITERS[file_format](str(temporary))) as writer:
            for example in examples:
                writer.write(example)

    def write_array_records(temporary: pathlib.Path) -> None:
        try:
            write(temporary)
        except RuntimeError as error:  # the disk is full
            raise OSError(one_line(error)) from error

    is_array = file_format == "array_record"
    materialise(path, write_array_records if is_array else write)


def _array_record_writer(path: str) -> Any:
    """Returns a writer with one record per group, so Grain can read each alone."""
    from array_record.python import array_record_module

    return array_record_module.ArrayRecordWriter(path, "group_size:1")


WRITERS: dict[str, Callable[[str], Any]] = {
    "tfrecord": tf.io.TFRecordWriter,
    "array_record": _array_record_writer,
}


def describe_shard(path: pathlib.Path, records: int) -> WrittenShard:
    """Measures and hashes a written file; the number of records is not checked."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WrittenShard(path.name, records, path.stat().st_size, digest)


def write_metadata(
    directory: pathlib.Path,
    name: str,
    features: tfds.features.FeaturesDict,
    splits: dict[str, list[WrittenShard]],
    file_format: str = "tfrecord",
) -> None:
    """Writes features.json and dataset_info.json for shards that exist already.

    Args:
      directory: folder of the dataset.
      name: name of the dataset.
      features: features of a record.
      splits: shards of each split, in order.
      file_format: a name in `RECORD_FORMATS`.
    """
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in shards],
            num_bytes=sum(shard.bytes for shard in shards),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=str(directory),
                dataset_name=name,
                split=split,
                filetype_suffix=file_format,
            ),
        )
        for split, shards in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=str(directory),
        features=features,
        split_infos=infos,
        filename_template=None,  # TFDS's default names
        check_data=False,  # it decodes a picture, and TensorFlow knows few formats
    )
    if file_format == "tfrecord":  # TFDS has no tf.data for ArrayRecord
        _read_first(directory, next(iter(splits)), features)


def _read_first(
    directory: pathlib.Path, split: str, features: tfds.features.FeaturesDict
) -> None:
    """Reads a split's first record by its features, without decoding pictures."""
    skipped = {
        name: tfds.decode.SkipDecoding()
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    builder = tfds.builder_from_directory(directory)
    (_,) = builder.as_dataset(split=f"{split}[:1]", decoders=skipped)
