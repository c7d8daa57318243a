import errno
import io

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from align_jax.errors import InputError
from align_jax.pictures import read_picture
from data.corpus.duckdb_errors import duckdb_errors
from data.pictures.evaluation_images import read_hashes, write_evaluation
from data.pictures.images import describe_images
from data.records import records
from data.records.formats import RECORD_FORMATS
from data.records.stages import materialise
from tests import tiny

EXAMPLES = [records.make_example(key=number) for number in range(7)]


def read(folder):
    files = sorted(map(str, folder.glob("a-train*")))
    return [[*tf.data.TFRecordDataset(name).as_numpy_iterator()] for name in files]


@pytest.mark.parametrize("kind", ["GIF", "AVIF", "TIFF", "WEBP", "BMP"])
def test_the_first_record_may_be_of_any_accepted_format(tmp_path, kind):
    file = io.BytesIO()
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    several = {"save_all": True, "append_images": frames[1:]} if kind != "BMP" else {}
    frames[0].save(file, kind, **several)
    example = records.make_example(
        image=file.getvalue(), text=b"a", image_id=b"i", key=1
    )
    written = records.write_split(tmp_path, "a", "train", [example], 1, 1)
    features = records.corpus_features()
    records.write_metadata(tmp_path, "a", features, {"train": written})
    builder = tfds.builder_from_directory(tmp_path)
    skipped = {"image": tfds.decode.SkipDecoding()}
    (row,) = builder.as_dataset(split="train", decoders=skipped)
    assert read_picture(row["image"].numpy()).shape[:2] == (4, 5)


def test_records_that_do_not_fit_the_features_are_refused(tmp_path):
    example = records.make_example(image=b"GIF", text=b"a")
    written = records.write_split(tmp_path, "a", "train", [example], 1, 1)
    with pytest.raises(tf.errors.InvalidArgumentError):
        records.write_metadata(
            tmp_path, "a", records.corpus_features(), {"train": written}
        )


@pytest.mark.parametrize("left", [0, 1])
def test_a_shard_that_an_earlier_attempt_left_is_written_again(tmp_path, left):
    name = records.shard_name("a", "train", left, 2)
    records.write_shard(tmp_path / name, EXAMPLES[5:])
    written = records.write_split(tmp_path, "a", "train", EXAMPLES, count=7, shards=2)
    assert read(tmp_path) == [EXAMPLES[:3], EXAMPLES[3:]]
    assert [shard.records for shard in written] == [3, 4]


def test_too_few_records_are_refused(tmp_path):
    with pytest.raises(InputError, match="split 'train' of a ends 2 records too early"):
        records.write_split(tmp_path, "a", "train", EXAMPLES[:5], count=7, shards=2)


@pytest.mark.parametrize("file_format", RECORD_FORMATS)
def test_a_shard_that_cannot_be_written_is_named(tmp_path, monkeypatch, file_format):
    kind = RuntimeError if file_format == "array_record" else tf.errors.InternalError

    class Full:
        def __init__(self, path):
            pass

        def write(self, record):
            raise kind(*(None, None)[: kind is not RuntimeError and 2], "No space left")

        def close(self):
            pass

    monkeypatch.setitem(records.WRITERS, file_format, Full)
    path = tmp_path / "shard"
    with pytest.raises(
        InputError, match=f"{path} cannot be written: No space left; wh"
    ):
        records.write_shard(path, EXAMPLES, file_format)
    assert not [*tmp_path.iterdir()]


def test_a_stage_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail_in_duckdb(path):
        with duckdb_errors():
            raise duckdb.IOException("IO Error: No space left on device")

    for make in (fail, fail_in_duckdb):
        with pytest.raises(
            InputError, match=r"stage cannot be written: .*No space left"
        ):
            materialise(tmp_path / "stage", make)
    assert not [*tmp_path.iterdir()]


def test_hashes_that_are_null_are_computed_where_there_is_a_picture(tmp_path):
    pictures = [tiny.draw(name, 2) for name in tiny.NAMES[:3]]
    columns = {
        "image_id": ["a", "b", "c", "d"],
        "phash": pa.array([5, None, None, None], pa.int64()),
        "image": [pictures[0], pictures[1], None, b"broken"],
    }
    source, target = tmp_path / "source.parquet", tmp_path / "target.parquet"
    pq.write_table(pa.table(columns), source)
    write_evaluation(str(source), target)
    (hashed,) = describe_images(["b"], pictures[1:2])["phash"].to_pylist()
    assert pq.read_table(target)["phash"].to_pylist() == [5, hashed, None, None]
    np.testing.assert_array_equal(read_hashes(target), [5, hashed])
