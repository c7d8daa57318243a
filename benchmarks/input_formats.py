"""Writes the pairs of `benchmarks.input` in every format that training reads."""

import pathlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from align_jax.input.datasets import DatasetConfig
from data.index import index_dataset
from data.records.records import write_shard

ROW_GROUP = 100  # rows, as `datasets` writes pictures


def open_formats(folder: pathlib.Path) -> dict[str, DatasetConfig]:
    """Writes the formats that the folder lacks; returns the datasets by format."""
    files = sorted((folder / "records").glob("*.tfrecord-*"))
    for name, write in (("parquet", write_parquet), ("array_record", write_arrays)):
        (folder / name).mkdir(exist_ok=True)
        for number, file in enumerate(files):
            path = folder / name / f"{number:05}.{name}"
            if not path.exists():
                write(path, file)
    index_dataset(str(folder / "tars"))
    return {
        "tfds": DatasetConfig(str(folder / "records")),
        "webdataset": DatasetConfig(str(folder / "tars"), "webdataset"),
        "parquet": DatasetConfig(str(folder / "parquet"), "parquet"),
        "array_record": DatasetConfig(str(folder / "array_record"), "array_record"),
    }


def read_records(file: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file."""
    return tf.data.TFRecordDataset(str(file)).as_numpy_iterator()


def write_arrays(path: pathlib.Path, file: pathlib.Path) -> None:
    """Writes the records of a TFRecord file as an ArrayRecord file."""
    write_shard(path, read_records(file), "array_record")


def write_parquet(path: pathlib.Path, file: pathlib.Path) -> None:
    """Writes the pairs of a TFRecord file as a Parquet file."""
    images, texts = [], []
    for record in read_records(file):
        features = tf.train.Example.FromString(record).features.feature
        images.append({"bytes": features["image"].bytes_list.value[0], "path": None})
        texts.append(features["text"].bytes_list.value[0].decode())
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "text": texts})
    pq.write_table(table, path, row_group_size=ROW_GROUP)
