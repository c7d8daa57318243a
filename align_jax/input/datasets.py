"""Datasets on disk: their shards, checked before anything starts, and their records.

A dataset is a folder in TFDS's layout with TFRecord files, of ours or of TFDS. Paths
may be any that TensorFlow reads, as gs:// ones.
"""

import array
import concurrent.futures
import dataclasses
import itertools
import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from align_jax.errors import InputError

MANIFEST = "manifest.json"  # of a corpus: what its shards' sizes must be
FRAME = 16  # bytes of TFRecord's framing around a record
REQUESTS = 32  # files that are asked for their size at a time


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One dataset of training.

    Attributes:
      directory: folder in TFDS's layout, local or any path TensorFlow reads; or the
        folder of its versions, of which the newest is taken.
      split: split of the dataset.
      image_feature: name of the encoded picture in a record.
      text_feature: name of the text, or of a list of texts of which each visit of the
        record takes one; "captions/text" is the field `text` of a list `captions`.
      label_feature: name of a class number that takes the text's place; "" for none.
      fraction: part of the records that is used, the first ones of the files. Records
        lie in a random order, so they are a random sample, and smaller ones are parts
        of larger ones.
      max_pairs: most records that are used, the first ones too; 0 for all.
    """

    directory: str
    split: str = "train"
    image_feature: str = "image"
    text_feature: str = "text"
    label_feature: str = ""
    fraction: float = 1.0
    max_pairs: int = 0

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}; wanted above 0, up to 1")
        if self.max_pairs < 0:
            raise ValueError(f"max_pairs is {self.max_pairs}; wanted 0 (all) or more")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file of a dataset; its first `records` are used."""

    path: str
    records: int


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The part of a dataset that is used.

    Attributes:
      shards: files in order, none without records.
      parse: a function of a serialized record, () bytes: the picture's file, () bytes,
        and its text, () bytes, or texts, (texts,) bytes, or label, () int64.
    """

    shards: list[Shard]
    parse: Callable


def open_shards(directory: str, split: str) -> list[Shard]:
    """Lists a split's shards in order, those without records left out.

    Raises:
      InputError: there is no dataset or split, it is not of TFRecord files, or a shard
        is missing, cut short or of another size than the manifest says.
    """
    return _list_shards(directory, _open_builder(directory, split).info, split)


def _list_shards(
    directory: str, info: tfds.core.DatasetInfo, split: str
) -> list[Shard]:
    """What `open_shards` does."""
    if info.file_format is not None and info.file_format.value != "tfrecord":
        raise InputError(
            f"{directory} holds {info.file_format.value} files; wanted tfrecord"
        )
    split_info = info.splits[split]
    paths = [str(path) for path in split_info.filepaths]
    shards = [
        Shard(path, records)
        for path, records in zip(paths, split_info.shard_lengths, strict=True)
    ]
    sizes = _sizes([shard.path for shard in shards])
    absent = [s.path for s, size in zip(shards, sizes, strict=True) if size is None]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(shards)} shards of {directory} are missing, the"
            f" first is {absent[0]}; build the dataset again"
        )
    _check_sizes(directory, shards, sizes, split_info.num_bytes)
    return [shard for shard in shards if shard.records]


def open_dataset(config: DatasetConfig) -> Dataset:
    """Opens the part of a dataset that is used.

    Raises:
      InputError: as `open_shards`, there are no records, or they have no such features
        or ones of another type.
    """
    directory = _newest_version(config.directory)
    builder = _open_builder(directory, config.split)
    shards = _list_shards(directory, builder.info, config.split)
    total = sum(shard.records for shard in shards)
    wanted = round(total * config.fraction)
    if config.max_pairs:
        wanted = min(wanted, config.max_pairs)
    if not wanted:
        raise InputError(
            f"{config.fraction} of the {total} records of {config.directory}"
            f" {config.split} are none"
        )
    used = []
    for shard in shards:
        used.append(dataclasses.replace(shard, records=min(shard.records, wanted)))
        wanted -= used[-1].records
        if not wanted:
            break
    return Dataset(used, _make_parser(builder.info.features, config))


def _make_parser(features: tfds.features.FeaturesDict, config: DatasetConfig):
    """Makes `Dataset.parse`, or raises InputError for features that do not fit."""
    known = features.tf_example_spec
    target = config.label_feature or config.text_feature
    target_type, description = tf.string, "a text or a list of texts"
    if config.label_feature:
        target_type, description = tf.int64, "one whole number"
    wanted = {
        config.image_feature: (tf.string, False, "one encoded picture"),
        target: (target_type, not config.label_feature, description),
    }
    for name, (dtype, may_be_list, description) in wanted.items():
        if name not in known:
            raise InputError(
                f"{config.directory} has no feature {name!r}; it has"
                f" {', '.join(sorted(known))}"
            )
        is_list = isinstance(known[name], tf.io.FixedLenSequenceFeature)
        if (
            known[name].dtype != dtype
            or len(known[name].shape)
            or (is_list and not may_be_list)
        ):
            raise InputError(
                f"feature {name!r} of {config.directory} is {known[name]}; wanted"
                f" {description}"
            )
    spec = {name: known[name] for name in wanted}

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, spec)
        return example[config.image_feature], example[target]

    return parse


def count_labels(config: DatasetConfig) -> int | None:
    """Classes that a dataset's labels are of; None where it does not say."""
    directory = _newest_version(config.directory)
    feature = _open_builder(directory, config.split).info.features
    for name in config.label_feature.split("/"):
        feature = feature[name]
    return getattr(feature, "num_classes", None)


def evaluation_records(
    directory: str, split: str, wanted: Sequence[str] = ()
) -> list[dict]:
    """Reads a whole evaluation split in the order of its files.

    Args:
      directory: dataset in TFDS's layout, or the folder of its versions.
      split: of the dataset.
      wanted: features that its records must have.

    Returns:
      One dict a record, as the dataset's features describe it, but with the picture
      left encoded (bytes).

    Raises:
      InputError: there is no such dataset, split or feature, or it is empty.
    """
    return list(stream_records(directory, split, wanted))


def stream_records(
    directory: str, split: str, wanted: Sequence[str] = ()
) -> Iterator[dict]:
    """Yields what `evaluation_records` lists, one at a time."""
    return _stream(_open_evaluation(directory, split, wanted), split)


def evaluation_size(directory: str, split: str, wanted: Sequence[str] = ()) -> int:
    """How many records `stream_records` yields; raises the same errors."""
    builder = _open_evaluation(directory, split, wanted)
    return builder.info.splits[split].num_examples


def label_names(directory: str, split: str, feature: str = "label") -> tuple[str, ...]:
    """Names of a dataset's classes; none where it has no such feature, or no names."""
    features = _open_evaluation(directory, split, ()).info.features
    label = features[feature] if feature in features else None
    return tuple(getattr(label, "names", None) or ())


class LabelledPictures:
    """Encoded pictures and their labels, read again each time they are iterated over.

    A split may be one of TFDS's expressions, such as "train[:90%]".

    Attributes:
      count: of the split's records.
      names: of the labels; None where the dataset has none.
    """

    def __init__(
        self,
        directory: str,
        split: str,
        image_feature: str = "image",
        label_feature: str = "label",
        expected: int = 0,
    ):
        """Opens the split.

        Args:
          directory: dataset in TFDS's layout, or the folder of its versions.
          split: of the dataset.
          image_feature: name of the encoded picture in a record.
          label_feature: name of the label, a whole number; -1 leaves a record out.
          expected: records that the split must have; 0 for any number.

        Raises:
          InputError: there is no such dataset, split or feature, or another count.
        """
        wanted = (image_feature, label_feature)
        self._builder = _open_evaluation(directory, split, wanted)
        self._directory, self._split = directory, split
        self._image, self._label = wanted
        self._places = array.array("q")  # in the split, of those that were given
        self.count = self._builder.info.splits[split].num_examples
        if expected not in (0, self.count):
            raise InputError(
                f"split {split!r} of {directory} has {self.count} pictures; wanted"
                f" {expected}"
            )
        label = self._builder.info.features[label_feature]
        self.names = getattr(label, "names", None)

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        self._places = array.array("q")
        for place, record in enumerate(_stream(self._builder, self._split)):
            if record[self._label] >= 0:
                self._places.append(place)
                yield record[self._image], int(record[self._label])

    def collect(self, labels: list[int]) -> Iterator[bytes]:
        """The pictures alone; each one's label is added to `labels` on the way.

        Raises:
          InputError: there are none.
        """
        for picture, label in self:
            labels.append(label)
            yield picture
        if not labels:
            raise InputError(
                f"split {self._split!r} of {self._directory} has no labelled picture"
            )

    def some(self, indices: Iterable[int]) -> dict[int, bytes]:
        """Pictures that the newest iteration gave, by their places in it."""
        order = sorted({*map(int, indices)})
        places = [self._places[index] for index in order]
        return dict(zip(order, self.pictures(places), strict=True))

    def pictures(self, places: Sequence[int]) -> Iterator[bytes]:
        """The pictures of some of the split's records, by their places, ascending."""
        start, passed = places[0], 0
        dataset = _open_stream(self._builder, self._split).skip(start)
        records = dataset.take(places[-1] + 1 - start).as_numpy_iterator()
        for place in places:
            record = next(itertools.islice(records, place - start - passed, None))
            passed = place - start + 1
            yield record[self._image]

    def labels(self) -> np.ndarray:
        """Labels of all records (count,), -1 where there is none."""
        wanted = tfds.decode.PartialDecoding({self._label: True})
        dataset = self._builder.as_dataset(
            split=self._split, decoders=wanted, shuffle_files=False
        )
        labels = (record[self._label] for record in dataset.as_numpy_iterator())
        return np.fromiter(labels, np.int64, self.count)


def is_dataset(directory: str) -> bool:
    """Whether a folder is a dataset's, or that of its versions."""
    path = os.path.join(_newest_version(directory), "dataset_info.json")
    return tf.io.gfile.exists(path)


def _newest_version(directory: str) -> str:
    """The folder of a dataset's newest version, or the folder itself; ~ is home."""
    directory = os.path.expanduser(directory)
    if not tf.io.gfile.isdir(directory):
        return directory
    found = [name.rstrip("/") for name in tf.io.gfile.listdir(directory)]
    versions = [name for name in found if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    if not versions:
        return directory
    newest = max(versions, key=lambda name: [*map(int, name.split("."))])
    return os.path.join(directory, newest)


def _open_evaluation(
    directory: str, split: str, wanted: Sequence[str]
) -> tfds.core.DatasetBuilder:
    """Opens a split's newest version, checked as `evaluation_records` says."""
    directory = _newest_version(directory)
    for part in split.split("+"):  # as "train[:90%]+validation"
        open_shards(directory, part.split("[")[0].strip())
    builder = tfds.builder_from_directory(directory)
    try:
        records = builder.info.splits[split].num_examples
    except (ValueError, KeyError) as error:
        raise InputError(f"{split!r} is no split of {directory}: {error}") from error
    if not records:
        raise InputError(f"split {split!r} of {directory} has no records")
    known = builder.info.features
    for name in wanted:
        if name not in known:
            raise InputError(
                f"{directory} has no feature {name!r}; it has"
                f" {', '.join(sorted(known))}"
            )
    return builder


def _stream(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[dict]:
    """A split's records with their pictures left encoded, in the order of the files."""
    return iter(_open_stream(builder, split).as_numpy_iterator())


def _open_stream(builder: tfds.core.DatasetBuilder, split: str) -> tf.data.Dataset:
    """What `_stream` gives, as TensorFlow's."""
    pictures_encoded = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return builder.as_dataset(
        split=split, decoders=pictures_encoded, shuffle_files=False
    )


def _open_builder(directory: str, split: str) -> tfds.core.DatasetBuilder:
    if not tf.io.gfile.exists(os.path.join(directory, "dataset_info.json")):
        raise InputError(
            f"no TFDS dataset in {directory!r} (no dataset_info.json): prepare it"
            " first, the quickstart's with `make data`, any corpus with `python -m"
            " data.build`, an evaluation set as docs/evaluation_sets.md says"
        )
    builder = tfds.builder_from_directory(directory)
    splits = builder.info.splits
    if split not in splits:
        raise InputError(f"{directory} has no split {split!r}; it has {list(splits)}")
    return builder


def _sizes(paths: Sequence[str]) -> list[int | None]:
    """Bytes of each file, None where it is missing."""

    def size(path: str) -> int | None:
        try:
            return tf.io.gfile.stat(path).length
        except tf.errors.NotFoundError:
            return None

    with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(size, paths))


def _check_sizes(
    directory: str, shards: Sequence[Shard], sizes: Sequence[int], total: int
) -> None:
    """Raises InputError for a shard whose size is not what the metadata say.

    A corpus of ours has a manifest with every size. TFDS states only the sum of all
    records; where the files are smaller, they are read to find the one cut short.
    """
    manifest = os.path.join(directory, MANIFEST)
    wanted = {}
    if tf.io.gfile.exists(manifest):
        with tf.io.gfile.GFile(manifest) as file:
            wanted = {s["name"]: s["bytes"] for s in json.load(file).get("shards", [])}
    for shard, size in zip(shards, sizes, strict=True):
        expected = wanted.get(os.path.basename(shard.path), size)
        if size != expected:
            raise InputError(
                f"{shard.path} has {size:,} bytes, but {manifest} says {expected:,};"
                " build the dataset again, or copy that file again"
            )
    if sum(sizes) >= total:
        return
    for shard in shards:
        found = count_records(shard.path)
        if found < shard.records:
            raise InputError(
                f"{shard.path} is cut short: it has {found} whole records, and"
                f" {directory}/dataset_info.json says {shard.records}; prepare the"
                " dataset again, or copy that file again"
            )


def count_records(path: str) -> int:
    """Whole records of a TFRecord file, by its framing; the records are not read."""
    with tf.io.gfile.GFile(path, "rb") as file:
        size, place, records = file.size(), 0, 0
        while place + FRAME <= size:
            file.seek(place)
            place += FRAME + struct.unpack("<Q", file.read(8))[0]
            records += place <= size
    return records
