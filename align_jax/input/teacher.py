"""Adds a teacher's embeddings to the records of a dataset, see `teacher_files`.

They are read in the order of the records, so a batch with its embeddings depends on the
seed and the step only.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from align_jax import places, shard_files
from align_jax.errors import InputError
from align_jax.input.formats.dataset import Dataset, ShardPart, read_in_python
from align_jax.input.shards import Shard
from align_jax.input.teacher_files import file_of, open_embeddings, unit_rows

if TYPE_CHECKING:
    import tensorflow as tf

    from align_jax.input.datasets import DatasetConfig

FIELDS = ("teacher_image", "teacher_text")  # of a batch, (B, D) float32 each
NO_EMBEDDING = "no teacher embedding"  # reason why a pair is replaced
TOGETHER = 1024  # records whose embeddings are read together
TRIED = 16  # first pictures of a shard of which one or more must have an embedding


def add_teacher(
    dataset: Dataset, config: "DatasetConfig", width: int
) -> tuple[Dataset, set[str]]:
    """Adds a teacher's embeddings to the records that a dataset reads.

    A group of records then has the fields "teacher_image" (N, D) and "teacher_texts"
    (N, texts + 1, D), padded with zeros.

    Args:
      dataset: the opened dataset.
      config: config of the dataset.
      width: width D that the embeddings must have.

    Returns:
      The dataset, and the names of the teachers that the files state.

    Raises:
      InputError: a file is missing or wrong, see `check_embeddings`.
    """
    import tensorflow as tf

    check = functools.partial(check_embeddings, config=config, width=width)
    shards = {shard.path: shard for shard in dataset.shards}
    models = {*shard_files.for_each(lambda path: check(shards[path]), [*shards])}
    signature = {
        "teacher_image": tf.TensorSpec((None, width), tf.float32),
        "teacher_texts": tf.TensorSpec((None, None, width), tf.float32),
    }
    reader = functools.partial(_read_rows, config.teacher)
    read_rows = read_in_python(reader, signature, _stack, dataset.failures)

    def read(part: ShardPart) -> "tf.data.Dataset":
        both = tf.data.Dataset.zip((dataset.read(part), read_rows(part)))
        return both.map(lambda records, rows: records | rows)

    return dataclasses.replace(dataset, read=read), models - {""}


def check_folders(
    datasets: Sequence[Dataset], configs: Sequence["DatasetConfig"]
) -> None:
    """Checks that no two shards have the same file of embeddings.

    Args:
      datasets: the opened datasets.
      configs: config of each dataset.

    Raises:
      InputError: two datasets have one folder, and shards of the same name.
    """
    shards: dict[str, str] = {}  # path of a shard by place of its embeddings
    for dataset, config in zip(datasets, configs, strict=True):
        for shard in dataset.shards:
            place = file_of(config.teacher, shard.path)
            other = shards.setdefault(place, shard.path)
            if other != shard.path:
                raise InputError(
                    f"{place} would have the embeddings of {other} and of {shard.path};"
                    " give each dataset a folder of its own as `teacher`"
                )


def check_embeddings(shard: Shard, config: "DatasetConfig", width: int) -> str:
    """Checks the file of a shard's embeddings.

    Args:
      shard: the shard, with the number of its records that are used.
      config: config of its dataset.
      width: width that the embeddings must have.

    Returns:
      The name of the teacher, "" if the file has none.

    Raises:
      InputError: the file is missing or damaged, is of another shard, of other features
        or of another width, has another number of rows, or none of its first rows is an
        embedding.
    """
    place = file_of(config.teacher, shard.path)
    if not places.exists(place):
        raise InputError(
            f"{place} is missing, the teacher's embeddings of {shard.path}: write them"
            " with `python main.py --config=CONFIG --teacher=MODEL`"
        )
    with places.opening(place) as file:
        found = open_embeddings(place, file)
        first = found.read(found.images, 0, min(TRIED, found.images.rows))
    if found.images.width != width:
        raise InputError(
            f"{place} has embeddings of {found.images.width} numbers, and"
            f" config.input.teacher_width is {width}"
        )
    # A dataset that is not used completely may end inside a shard.
    partial = config.fraction < 1 or config.max_pairs
    rows, records = found.images.rows, shard.records
    if rows < records or (rows > records and not partial):
        raise InputError(
            f"{place} has embeddings of {rows} pictures, and {shard.path} has {records}"
            " records; write it again"
        )
    size = places.size(shard.path)
    if found.shard_bytes not in (None, size):
        raise InputError(
            f"{place} is of a shard of {found.shard_bytes:,} bytes, and"
            f" {shard.path} has {size:,}; write it again"
        )
    if found.features not in (None, config.targets):
        raise InputError(
            f"{place} has the texts of {', '.join(found.features)}, and the config"
            f" names {', '.join(config.targets)}; write it again, to another folder"
        )
    if not unit_rows(first)[1].any():
        raise InputError(
            f"{place} has no embedding of the first {len(first)} pictures: their"
            " numbers are zero or not finite"
        )
    return found.model


def _read_rows(
    folder: str, path: str, first: int, last: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (D,) of the picture and (texts, D) of the texts of records [first, last).

    Args:
      folder: folder of the embeddings.
      path: path or URL of the shard.
      first: number of the first record.
      last: number after that of the last record.
    """
    place = file_of(folder, path)
    with places.opening(place) as file:
        found = open_embeddings(place, file)
        ends = np.concatenate([[0], np.cumsum(found.counts)])
        for begin in range(first, last, TOGETHER):
            end = min(begin + TOGETHER, last)
            images = found.read(found.images, begin, end)
            texts = found.read(found.texts, ends[begin], ends[end])
            cuts = ends[begin + 1 : end] - ends[begin]
            yield from zip(images, np.split(texts, cuts), strict=True)


def _stack(rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Converts the embeddings of N records to the fields of `add_teacher`."""
    images = np.stack([image for image, _ in rows])
    most = max(len(texts) for _, texts in rows)
    stacked = np.zeros((len(rows), most + 1, images.shape[1]), np.float32)
    for row, (_, texts) in enumerate(rows):
        stacked[row, : len(texts)] = texts
    return {"teacher_image": images, "teacher_texts": stacked}


def choose_embeddings(
    records: Mapping[str, "tf.Tensor"], chosen: "tf.Tensor"
) -> dict[str, "tf.Tensor"]:
    """Returns the embeddings `FIELDS` (N, D) of N records; {} without a teacher.

    Args:
      records: fields of the records, see `add_teacher`.
      chosen: (N,) int32 index of the text that is used among those of a record.
    """
    import tensorflow as tf

    if "teacher_image" not in records:
        return {}
    texts = records["teacher_texts"]  # (N, texts + 1, D)
    # Texts without an embedding have the last row, which is zero.
    chosen = tf.minimum(chosen, tf.shape(texts)[1] - 1)
    rows = (records["teacher_image"], tf.gather(texts, chosen, batch_dims=1))
    return dict(zip(FIELDS, rows, strict=True))


def take_embeddings(
    records: Mapping[str, np.ndarray], reasons: list[str]
) -> dict[str, np.ndarray]:
    """Returns the embeddings `FIELDS` (B, D) of a batch; {} without a teacher.

    They have unit length, or are zero if there is no embedding.

    Args:
      records: fields of the batch's records.
      reasons: reasons why pairs cannot be used; receives `NO_EMBEDDING`.
    """
    batch = {}
    for name in FIELDS:
        if name in records:
            batch[name], usable = unit_rows(records[name])
            for row in np.flatnonzero(~usable):
                reasons[row] = reasons[row] or NO_EMBEDDING
    return batch
