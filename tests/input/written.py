"""Writes the pairs of `tiny.write_training` in each format that training reads."""

import io
import json
import pathlib
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module

from align_jax.input.datasets import DatasetConfig
from data.index import index_dataset
from data.records.records import make_example
from tests import tiny

ROW_GROUP = 70  # rows


def pairs_of(lengths):
    """The (picture, text) pairs of each shard."""
    numbers = iter(range(sum(lengths)))
    return [
        [
            (tiny.draw(tiny.NAMES[i % 12], i % 100), f"{tiny.NAMES[i % 12]} {i}")
            for i in [next(numbers) for _ in range(length)]
        ]
        for length in lengths
    ]


def write_tar(path, samples):
    """Writes samples, dicts of contents by ending."""
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for ending, content in sample.items():
                member = tarfile.TarInfo(f"{number:06}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_tars(folder, shards):
    """Writes pairs as img2dataset does and indexes them."""
    folder.mkdir()
    for number, pairs in enumerate(shards):
        fields = [json.dumps({"caption": text}).encode() for _, text in pairs]
        samples = [
            {"png": image, "json": field, "txt": text.encode()}
            for (image, text), field in zip(pairs, fields, strict=True)
        ]
        write_tar(folder / f"{number:05}.tar", samples)
    index_dataset(str(folder), workers=1)


def write_parquet(folder, shards):
    """Writes pairs as `datasets` does, with the struct of a picture."""
    folder.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number, pairs in enumerate(shards):
        images = [{"bytes": image, "path": None} for image, _ in pairs]
        texts = pa.array([text for _, text in pairs], pa.large_string())
        table = pa.table({"image": pa.array(images, kind), "text": texts})
        name = f"train-{number:05}-of-{len(shards):05}.parquet"
        pq.write_table(table, folder / name, row_group_size=ROW_GROUP)


def write_array_records(folder, shards):
    folder.mkdir()
    for number, pairs in enumerate(shards):
        path = str(folder / f"{number:05}.array_record")
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        for image, text in pairs:
            writer.write(make_example(image=image, text=text.encode()))
        writer.close()


WRITERS = {
    "webdataset": write_tars,
    "parquet": write_parquet,
    "array_record": write_array_records,
}


def write_format(name: str, root: pathlib.Path, lengths: list[int]) -> DatasetConfig:
    """Writes numbered pairs in shards of the given lengths."""
    folder = root / name
    if name == "tfds":
        return DatasetConfig(tiny.write_training(folder, lengths))
    WRITERS[name](folder, pairs_of(lengths))
    return DatasetConfig(str(folder), name)
