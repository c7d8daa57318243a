"""Pairs in a TFDS dataset that is prepared already; pictures stay encoded.

Rows are as in `data.sources.tables`.
"""

import collections
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf
import tensorflow_datasets as tfds

from align_jax.errors import InputError
from data.sources.tables import Columns, Row


def count_shards(path: str, data_dir: str, split: str, features: Sequence[str]) -> int:
    """Counts the TFRecord shards of a split.

    Args:
      path: folder of a prepared dataset's version, or its name.
      data_dir: where a named one lies; empty for TFDS's own folder.
      split: name of the split.
      features: what it must have; "captions/text" is a feature of a feature.

    Raises:
      InputError: there is no such dataset, split or feature, or it is not prepared.
    """
    builder = _open(path, data_dir)
    if split not in builder.info.splits:
        raise InputError(
            f"{path} has no split {split!r}; it has {[*builder.info.splits]}"
        )
    found = builder.info.features
    missing = [name for name in features if name.partition("/")[0] not in found]
    if missing:
        raise InputError(f"{path} lacks the features {missing}; it has {[*found]}")
    return builder.info.splits[split].num_shards


def read_tfds(
    path: str,
    data_dir: str,
    split: str,
    columns: Columns,
    language: str,
    drops: collections.Counter,
) -> Iterator[Row]:
    """Reads pairs from a split or a part of it, in its order.

    Args:
      path: folder of a prepared dataset's version, or its name.
      data_dir: where a named one lies; empty for TFDS's own folder.
      split: as in "train[3shard]".
      columns: features, as in the config.
      language: of records that have none.
      drops: counts records by the reason why they are no pairs.

    Yields:
      Rows; one a text where a record has several.
    """
    builder = _open(path, data_dir)
    decoders = {}
    if isinstance(builder.info.features[columns.image], tfds.features.Image):
        decoders[columns.image] = tfds.decode.SkipDecoding()
    records = iter(builder.as_dataset(split=split, decoders=decoders))
    while True:
        try:
            record = next(records, None)
        except tf.errors.DataLossError:
            drops["truncated tfrecord"] += 1
            return
        if record is None:
            return
        texts = record
        for name in columns.text.split("/"):
            texts = texts[name]
        texts = tf.reshape(getattr(texts, "values", texts), [-1]).numpy().tolist()
        url, spoken = (
            record[name].numpy() if name in record else b""
            for name in (columns.url, columns.language)
        )
        image = record[columns.image].numpy()
        for text in texts:
            try:
                fields = url.decode() or None, text.decode()
                yield image, *fields, spoken.decode() or language
            except UnicodeDecodeError:
                drops["undecodable text"] += 1


def _open(path: str, data_dir: str) -> tfds.core.DatasetBuilder:
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "dataset_info.json")):
            raise InputError(
                f"{path} holds no dataset_info.json; wanted the folder of a prepared"
                " TFDS dataset's version, as in NAME/1.0.0"
            )
        return tfds.builder_from_directory(path)
    try:
        builder = tfds.builder(path, data_dir=data_dir or None)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise InputError(f"no TFDS dataset or folder {path!r}") from error
    if not builder.is_prepared():
        raise InputError(
            f"TFDS dataset {path!r} is not prepared in {builder.data_dir}: run"
            f" `tfds build {path} --data_dir=...`"
        )
    return builder
