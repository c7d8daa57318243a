"""Reads records for evaluation: whole splits in the order of their files."""

import array
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from align_jax import dataset_folder
from align_jax.errors import InputError, check_count
from align_jax.input.shards import open_shards

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_datasets as tfds

# Formats of an evaluation set: TFDS's layout, and CLIP_benchmark's folders of tars.
FORMATS = ("tfds", "wds")


def evaluation_records(
    directory: str, split: str, wanted: Sequence[str] = ()
) -> list[dict]:
    """Reads a whole evaluation split in the order of its files.

    Args:
      directory: path or URL of a dataset in TFDS's layout, or of the folder of its
        versions.
      split: name of the split, or an expression of TFDS such as "train[:90%]".
      wanted: feature names that the records must have.

    Returns:
      One dict a record, as the dataset's features describe it, but with pictures left
      encoded (bytes).

    Raises:
      InputError: the dataset, the split or a feature is missing, or the split is empty.
    """
    return list(stream_records(directory, split, wanted))


def stream_records(
    directory: str, split: str, wanted: Sequence[str] = ()
) -> Iterator[dict]:
    """Yields the records of `evaluation_records` one at a time."""
    return _stream(_open_evaluation(directory, split, wanted), split)


def describe_split(
    directory: str, split: str, wanted: Sequence[str] = ()
) -> tuple[int, tuple[str, ...]]:
    """Returns facts about a split; raises as `evaluation_records` does.

    Returns:
      The number of records, and the class names of the feature `label` by class number;
      () if the dataset lacks the feature or its names.
    """
    info = _open_evaluation(directory, split, wanted).info
    label = info.features["label"] if "label" in info.features else None
    names = tuple(getattr(label, "names", None) or ())
    return info.splits[split].num_examples, names


class LabelledPictures:
    """Pairs (encoded picture, label), read from the files in every iteration.

    Records with a negative label are left out.

    Attributes:
      count: number of the split's records, with those that have no label.
      names: label names; None if the dataset has none.
    """

    def __init__(
        self,
        directory: str,
        split: str,
        image_feature: str = "image",
        label_feature: str = "label",
        expected: int = 0,
    ) -> None:
        """Opens the split.

        Args:
          directory: path or URL of a dataset in TFDS's layout, or of the folder of its
            versions.
          split: name of the split, or an expression of TFDS such as "train[:90%]".
          image_feature: name of the encoded picture in a record.
          label_feature: name of the label, a whole number.
          expected: number of records that the split must have; 0 for any number.

        Raises:
          InputError: the dataset, the split or a feature is missing, the split is
            empty, or the number of records is not the expected one.
        """
        wanted = (image_feature, label_feature)
        self._builder = _open_evaluation(directory, split, wanted)
        self._directory, self._split = directory, split
        self._image, self._label = wanted
        self._indices = array.array("q")  # records of the yielded pictures
        self.count = self._builder.info.splits[split].num_examples
        check_count(f"split {split!r} of {directory}", self.count, expected, "pictures")
        label = self._builder.info.features[label_feature]
        self.names = getattr(label, "names", None)

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        self._indices = array.array("q")
        for index, record in enumerate(_stream(self._builder, self._split)):
            if record[self._label] >= 0:
                self._indices.append(index)
                yield record[self._image], int(record[self._label])

    def collect(self, labels: list[int]) -> Iterator[bytes]:
        """Yields the pictures alone and appends the label of each to `labels`.

        Raises:
          InputError: the split has no labelled picture.
        """
        for picture, label in self:
            labels.append(label)
            yield picture
        if not labels:
            raise InputError(
                f"split {self._split!r} of {self._directory} has no labelled picture"
            )

    def some(self, indices: Iterable[int]) -> dict[int, bytes]:
        """Reads some pictures of the newest iteration again.

        Args:
          indices: positions in that iteration, from 0, in any order.

        Returns:
          The encoded picture by index.
        """
        order = sorted({*map(int, indices)})
        records = [self._indices[index] for index in order]
        return dict(zip(order, self.pictures(records), strict=True))

    def pictures(self, indices: Sequence[int]) -> Iterator[bytes]:
        """Yields the encoded pictures of some records.

        Args:
          indices: positions in the split, from 0, with records that have no label;
            ascending, none twice.
        """
        if not indices:
            return
        start, passed = indices[0], 0
        dataset = _open_stream(self._builder, self._split).skip(start)
        dataset = dataset.take(indices[-1] + 1 - start)
        records = _read(self._builder, self._split, dataset)
        for index in indices:
            record = next(itertools.islice(records, index - start - passed, None))
            passed = index - start + 1
            yield record[self._image]

    def labels(self) -> np.ndarray:
        """Returns the labels of all records, (count,) int64; negative for no label."""
        import tensorflow_datasets as tfds

        wanted = tfds.decode.PartialDecoding({self._label: True})
        dataset = self._builder.as_dataset(
            split=self._split, decoders=wanted, shuffle_files=False
        )
        records = _read(self._builder, self._split, dataset)
        labels = (record[self._label] for record in records)
        return np.fromiter(labels, np.int64, self.count)


class LabelledSplits:
    """Base of the configs that name splits of labelled pictures.

    Attributes:
      directory: dataset in TFDS's layout.
      image_feature: name of the encoded picture in a record.
      label_feature: name of the label in a record.
    """

    directory: str
    image_feature: str
    label_feature: str

    def open(self, split: str, expected: int = 0) -> LabelledPictures:
        """Opens a split, see `LabelledPictures`."""
        return LabelledPictures(
            self.directory, split, self.image_feature, self.label_feature, expected
        )


def _open_evaluation(
    directory: str, split: str, wanted: Sequence[str]
) -> "tfds.core.DatasetBuilder":
    """Opens a split of the newest version; raises as `evaluation_records` does."""
    directory = dataset_folder.newest_version(directory)
    for name in _split_names(split):
        open_shards(directory, name)
    builder = dataset_folder.open_folder(directory)
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


def _split_names(split: str) -> list[str]:
    """Returns the splits of an expression such as "train[:90%]+validation"."""
    return [part.split("[")[0].strip() for part in split.split("+")]


def _stream(builder: "tfds.core.DatasetBuilder", split: str) -> Iterator[dict]:
    """Yields a split's records in the order of the files, with encoded pictures."""
    return _read(builder, split, _open_stream(builder, split))


def _read(
    builder: "tfds.core.DatasetBuilder", split: str, dataset: "tf.data.Dataset"
) -> Iterator[dict]:
    """Yields records of a split as NumPy values; InputError if one is damaged."""

    def count_records() -> dict[str, int]:
        found: dict[str, int] = {}
        for name in _split_names(split):
            found |= dataset_folder.records_by_shard(builder.info.splits[name])
        return found

    with dataset_folder.reading_records(count_records):
        yield from dataset.as_numpy_iterator()


def _open_stream(builder: "tfds.core.DatasetBuilder", split: str) -> "tf.data.Dataset":
    """Returns the records of `_stream` as a dataset of TensorFlow."""
    import tensorflow_datasets as tfds

    pictures_encoded = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return builder.as_dataset(
        split=split, decoders=pictures_encoded, shuffle_files=False
    )
