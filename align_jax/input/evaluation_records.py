"""Records of evaluation: whole splits in the order of their files."""

import array
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from align_jax.errors import InputError
from align_jax.input.shards import newest_version, open_shards


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


def _open_evaluation(
    directory: str, split: str, wanted: Sequence[str]
) -> tfds.core.DatasetBuilder:
    """Opens a split's newest version, checked as `evaluation_records` says."""
    directory = newest_version(directory)
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
