"""An opened training dataset, and the way from a format's reader to tf.data."""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from align_jax import dataset_folder
from align_jax.errors import InputError
from align_jax.input.formats.kept_pictures import ABSENT, KeptPictures
from align_jax.input.shards import Shard

if TYPE_CHECKING:
    import tensorflow as tf

# A pair's picture file, and its texts by feature or its label (negative for none).
Row = tuple[bytes, list[list[bytes]] | int]
Pairs = tuple["tf.Tensor", list["tf.Tensor | tf.RaggedTensor"]]


class ShardPart(NamedTuple):
    """The records [first, last) of a shard, read in order and in groups.

    Attributes:
      path: path () string of the shard.
      first: number () int64 of a record, a multiple of `size`.
      last: number () int64 of the record after the last one.
      size: number of records N of a group; the last group may have fewer.
      pictures: owner of the pictures of formats that are read in Python; None for none.
        With an owner, the records' field "kept" (N,) int64 has the pictures' numbers,
        and `Dataset.parse` returns empty pictures in their place. A number is `ABSENT`
        where the record itself has the picture.
    """

    path: "tf.Tensor"
    first: "tf.Tensor"
    last: "tf.Tensor"
    size: int
    pictures: KeptPictures | None = None


# Function that returns a dataset of groups, dicts of tensors (N, ...) with the fields
# of N records each.
Read = Callable[[ShardPart], "tf.data.Dataset"]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The records of a dataset that a run uses.

    Attributes:
      shards: files in order, each with one or more records that are used.
      read: function that reads a part of a shard.
      parse: function from N records, a dict of tensors (N, ...), to the pictures' files
        (N,) string and a list of the targets: for each feature of texts, one text of
        each record (N,) string or its texts (N, None) ragged; or the labels (N,) int64.
      failures: errors that ended the reading of a shard; filled by `read`.
    """

    shards: list[Shard]
    read: Read
    parse: Callable[[dict[str, "tf.Tensor"]], Pairs]
    failures: list[Exception] = dataclasses.field(default_factory=list)


class ShardReader(Protocol):
    """Reads the shards of a dataset in Python.

    Iterators end early, when no more records are needed, and are closed then.
    """

    def __call__(self, path: str, first: int, last: int) -> Iterator[Any]:
        """Yields the records [first, last) of a shard, in order.

        They are rows, or bytes for formats of serialized records.

        Raises:
          InputError: the shard cannot be read, with its path.
        """
        ...


@contextlib.contextmanager
def naming_damage(
    datasets: Sequence[Dataset], list_shards: Callable[[], Iterable[str]]
) -> Iterator[None]:
    """Turns errors of reading inside the `with` statement into InputErrors.

    Args:
      datasets: datasets that are read.
      list_shards: function that returns the paths of the shards that may be damaged,
        one or more.

    Raises:
      InputError: a shard is damaged, missing or unreadable; see `reading_records`.
    """

    def count_records() -> dict[str, int]:
        shards = (shard for dataset in datasets for shard in dataset.shards)
        records = {shard.path: shard.records for shard in shards}
        return {path: records[path] for path in list_shards()}

    with dataset_folder.reading_records(count_records):
        try:
            yield
        except Exception as error:  # TensorFlow's, of an error in a format's reader
            for failure in (f for dataset in datasets for f in dataset.failures):
                raise failure from error
            raise


def read_in_python(
    reader: ShardReader,
    signature: dict[str, "tf.TensorSpec"],
    stack: Callable[[list[Any]], dict[str, Any]],
    failures: list[Exception],
) -> Read:
    """Makes `Dataset.read` from a reader in Python.

    It fails if a shard has fewer records than when the dataset was opened.

    Args:
      reader: reader of the format.
      signature: types and shapes of the fields of a group of records.
      stack: function from a list of the reader's records to these fields.
      failures: list that receives the reader's errors, which tf.data turns into text.
    """

    def groups(path: bytes, first: int, last: int, size: int) -> Iterator[dict]:
        shard, at = os.fsdecode(path), int(first)
        records = reader(shard, at, int(last))
        try:
            while group := list(itertools.islice(records, int(size))):
                at += len(group)
                yield stack(group)
            if at < last:
                raise InputError(
                    f"{shard} ends before record {last}, which it had when the dataset"
                    " was opened"
                )
        except Exception as error:
            failures.append(error)
            raise

    def read(part: ShardPart) -> "tf.data.Dataset":
        import tensorflow as tf

        return tf.data.Dataset.from_generator(
            groups,
            args=(part.path, part.first, part.last, part.size),
            output_signature=signature,
        )

    return read


def open_rows(
    shards: list[Shard], reader: ShardReader, features: int, labelled: bool
) -> Dataset:
    """Makes a dataset from a reader of rows.

    Args:
      shards: files of the dataset.
      reader: reader of rows.
      features: number of features of texts.
      labelled: whether the rows have labels instead of texts.
    """
    import tensorflow as tf

    signature = {
        "image": tf.TensorSpec((None,), tf.string),
        "kept": tf.TensorSpec((None,), tf.int64),
    }
    if labelled:
        signature["label"] = tf.TensorSpec((None,), tf.int64)
    else:
        signature["texts"] = tf.TensorSpec((None, features, None), tf.string)
        signature["counts"] = tf.TensorSpec((None, features), tf.int64)

    def parse(records: dict[str, "tf.Tensor"]) -> Pairs:
        if labelled:
            return records["image"], [records["label"]]
        texts = [
            tf.RaggedTensor.from_tensor(records["texts"][:, i], records["counts"][:, i])
            for i in range(features)
        ]
        return records["image"], texts

    failures: list[Exception] = []

    def read(part: ShardPart) -> "tf.data.Dataset":
        stack = functools.partial(_stack_rows, part.pictures)
        return read_in_python(reader, signature, stack, failures)(part)

    return Dataset(shards, read, parse, failures)


def _stack_rows(pictures: KeptPictures | None, rows: list[Row]) -> dict[str, Any]:
    """Converts N rows to image and kept (N,), and label (N,), or texts and counts.

    The texts are (N, features, T), padded with empty ones; counts is (N, features).
    """
    files = [image for image, _ in rows]
    if pictures is None:
        fields = {"image": np.array(files, object), "kept": np.full(len(rows), ABSENT)}
    else:
        fields = {"image": np.full(len(rows), b""), "kept": pictures.keep(files)}
    lists = [target for _, target in rows if isinstance(target, list)]
    if not lists:
        labels = np.array([label for _, label in rows], np.int64)
        return fields | {"label": labels}
    counts = np.array([[len(texts) for texts in target] for target in lists], np.int64)
    texts = np.full((*counts.shape, counts.max()), b"", object)
    for row, target in enumerate(lists):
        for feature, found in enumerate(target):
            texts[row, feature, : len(found)] = found
    return fields | {"texts": texts, "counts": counts}


def clean_texts(texts: Iterable[bytes]) -> list[bytes]:
    """Returns the texts that are more than white space."""
    return [text for text in texts if text and not text.isspace()]
