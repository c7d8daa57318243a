"""Draws the pairs of `benchmarks.input`, in every format that training reads."""

import io
import itertools
import pathlib
import statistics
import tarfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from align_jax.input.datasets import DatasetConfig
from data.index import index_dataset
from data.records.records import (
    image_feature,
    make_example,
    write_metadata,
    write_shard,
    write_split,
)

HEIGHT, WIDTH, QUALITY = 375, 500, 85
PICTURES, PAIRS, SHARDS, WORDS = 256, 4096, 16, 3000
ROW_GROUP = 100  # rows, as `datasets` writes pictures


def draw_photograph(draw: np.random.Generator) -> bytes:
    """Draws a JPEG file of noise; its amplitude falls as frequency to the power 1.5."""
    rows = np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT
    columns = np.fft.rfftfreq(WIDTH) * WIDTH
    frequency = np.maximum(np.hypot(rows, columns), 1.0)
    planes = []
    for slope, deviation in ((1.5, 55), (1.4, 18), (1.4, 18)):  # Y, Cb, Cr
        phases = draw.normal(size=(2, *frequency.shape))
        spectrum = (phases[0] + 1j * phases[1]) / frequency**slope
        plane = np.fft.irfft2(spectrum, (HEIGHT, WIDTH))
        plane = 128 + deviation * plane / plane.std()
        planes.append(Image.fromarray(plane.clip(0, 255).astype(np.uint8)))
    file = io.BytesIO()
    picture = Image.merge("YCbCr", planes).convert("RGB")
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write_data(folder: pathlib.Path) -> None:
    """Writes tars/, records/ and at last vocabulary.txt, which marks complete data."""
    draw = np.random.default_rng(0)
    pictures = [draw_photograph(draw) for _ in range(PICTURES)]
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(draw.choice(letters, draw.integers(2, 9))) for _ in range(WORDS)]
    texts = [" ".join(draw.choice(words, draw.integers(3, 18))) for _ in range(PAIRS)]
    pairs = list(zip(itertools.cycle(pictures), texts, strict=False))
    (folder / "tars").mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        with tarfile.open(folder / "tars" / f"{shard:05}.tar", "w") as tar:
            for index in range(shard, PAIRS, SHARDS):
                files = {"jpg": pairs[index][0], "txt": pairs[index][1].encode()}
                for kind, content in files.items():
                    info = tarfile.TarInfo(f"{index:08}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    records = folder / "records"
    examples = (make_example(image=i, text=t.encode()) for i, t in pairs)
    shards = write_split(
        records, "photographs", "train", examples, count=PAIRS, shards=SHARDS
    )
    features = {"image": image_feature(), "text": tfds.features.Text()}
    features = tfds.features.FeaturesDict(features)
    write_metadata(records, "photographs", features, {"train": shards})
    size = statistics.mean(map(len, pictures))
    print(f"{PAIRS} pairs of {PICTURES} pictures, {size:.0f} bytes each, in {folder}")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(words))]
    (folder / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n")


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
