"""The embeddings of a teacher reach the batches of every format, each with its pair."""

import dataclasses
import io
import itertools
import re
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from align_jax.errors import InputError
from align_jax.input.datasets import DatasetConfig
from align_jax.input.teacher import FIELDS, NO_EMBEDDING
from align_jax.input.teacher_files import write_embeddings
from align_jax.input.training_data import InputConfig
from tests import tiny
from tests.input.batches import LENGTHS, PREPROCESS, batches, open_batches
from tests.input.written import WRITERS, pairs_of, write_format, write_parquet
from tests.teachers import WIDTH, draw_rows, write_teacher

FORMATS = ("tfds", *WRITERS)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The datasets of all formats with a teacher, and its embeddings by pair."""
    root = tmp_path_factory.mktemp("taught")
    parts = {}
    for name in FORMATS:
        part = write_format(name, root, LENGTHS)
        rows = write_teacher(root / f"{name}_teacher", part)
        parts[name] = dataclasses.replace(part, teacher=str(root / f"{name}_teacher"))
    return parts, rows


def assert_are_of_their_pairs(drawn, rows):
    """`rows` (2, N, D) are indexed by the tokens, which are numbers of pairs."""
    for batch in drawn:
        for field, expected in zip(FIELDS, rows, strict=True):
            assert batch[field].dtype == np.float32
            np.testing.assert_allclose(
                batch[field], expected[batch["tokens"][:, 0]], atol=1e-6
            )


@pytest.mark.parametrize("name", FORMATS)
def test_embeddings_are_those_of_their_pairs_in_every_format(taught, name):
    parts, rows = taught
    part = {"a": parts[name]}
    whole = batches(part, 14, teacher_width=WIDTH)  # more than an epoch
    assert_are_of_their_pairs(whole, rows)
    resumed = batches(part, 2, 9, teacher_width=WIDTH)
    for step, expected in enumerate(whole[9:11]):
        for field, rows in expected.items():
            np.testing.assert_array_equal(resumed[step][field], rows)


def test_hosts_share_the_embeddings_and_pairs_stay_the_same(taught):
    part = taught[0]["tfds"]
    whole = batches({"a": part}, 3, 9, teacher_width=WIDTH)
    plain = batches({"a": dataclasses.replace(part, teacher="")}, 3, 9)
    hosts = [batches({"a": part}, 3, 9, 0, h, 2, teacher_width=WIDTH) for h in (0, 1)]
    for step, batch in enumerate(whole):
        assert {*batch} - {*plain[step]} == {*FIELDS}
        for field, rows in batch.items():
            halves = np.concatenate([host[step][field] for host in hosts])
            np.testing.assert_array_equal(halves, rows)
            np.testing.assert_array_equal(plain[step].get(field, rows), rows)


def test_columns_of_a_dataset_become_a_file(tmp_path):
    """As docs/input.md says."""
    write_parquet(tmp_path / "shards", pairs_of([40]))
    rows = draw_rows(40)
    (path,) = (tmp_path / "shards").iterdir()
    table = pq.read_table(path)
    for name, column in zip(("image_emb", "text_emb"), rows, strict=True):
        vectors = [list(map(float, 3 * row)) for row in column]
        table = table.append_column(name, pa.array(vectors, pa.list_(pa.float32())))
    pq.write_table(table, path)
    table = pq.read_table(path, columns=["image_emb", "text_emb"])
    images, texts = (np.stack(column.to_numpy()) for column in table.columns)
    np.savez(tmp_path / f"{path.name}.npz", images=images, texts=texts)
    part = DatasetConfig(str(tmp_path / "shards"), "parquet", teacher=str(tmp_path))
    assert_are_of_their_pairs(batches({"a": part}, 3, teacher_width=WIDTH), rows)


def test_datasets_of_several_formats_mix(taught):
    parts, rows = taught
    mixed = {"a": parts["tfds"], "b": parts["parquet"]}
    assert_are_of_their_pairs(batches(mixed, 6, teacher_width=WIDTH), rows)


def test_a_part_of_a_dataset_needs_no_other_embeddings(taught):
    parts, rows = taught
    part = dataclasses.replace(parts["tfds"], max_pairs=40)
    assert_are_of_their_pairs(batches({"a": part}, 6, teacher_width=WIDTH), rows)


def test_the_embedding_is_that_of_the_text_that_was_drawn(tmp_path):
    """Records have none to three texts in two features."""
    counts = np.array([[2, 1], [0, 2], [1, 0], [3, 0], [0, 1], [1, 1]] * 4)
    number, records = itertools.count(), []
    for row, (first, second) in enumerate(counts):
        named = {"first": first, "second": second}
        texts = {
            feature: tiny.text(*(f"a {next(number)}" for _ in range(count)))
            for feature, count in named.items()
        }
        records.append({"image": tiny.picture(row)} | texts)
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "first": tiny.TEXTS,
        "second": tiny.TEXTS,
    }
    folder = tiny.write_dataset(tmp_path / "data", "train", [records], features)
    texts, images = draw_rows(counts.sum())[1], draw_rows(len(counts), seed=1)[0]
    part = DatasetConfig(
        folder,
        captions=((0, {"first": 1.0, "second": 2.0}),),
        teacher=str(tmp_path / "teacher"),
    )
    shard = f"{folder}/tiny-train.tfrecord-00000-of-00001"
    write_embeddings(
        part.teacher,
        shard,
        images,
        texts,
        counts=counts.sum(1).astype(np.uint8),
        features=part.targets,
        model="a",
    )
    of_text = np.repeat(np.arange(len(counts)), counts.sum(1))
    drawn = batches({"a": part}, 20, streams=4, teacher_width=WIDTH)
    assert_are_of_their_pairs(drawn, (images[of_text], texts))
    assert len(np.unique([batch["tokens"] for batch in drawn])) > 0.9 * len(texts)


def test_a_pair_without_an_embedding_is_replaced_as_others_are(taught, tmp_path):
    part = taught[0]["webdataset"]
    rows = write_teacher(tmp_path, part)
    images, texts = rows[:, :30].copy()
    images[3], texts[17], images[20] = np.nan, 0, np.inf
    np.savez(tmp_path / "00000.tar.npz", images=images, texts=texts)
    part = dataclasses.replace(part, teacher=str(tmp_path))
    drawn = open_batches({"a": part}, batch=32, max_replaced=0.1, teacher_width=WIDTH)
    found = list(itertools.islice(drawn, 3))
    drawn.close()
    assert_are_of_their_pairs(found, rows)
    assert drawn.replaced == {NO_EMBEDDING: 3}
    seen = {n for batch in found for n in batch["tokens"][:, 0].tolist()}
    assert not seen & {3, 17, 20}


ROWS = {"images": draw_rows(30)[0], "texts": draw_rows(30)[1]}


def without(name):
    return {n: rows for n, rows in ROWS.items() if n != name}


def unknown_compression():
    file = io.BytesIO()
    np.savez(file, model="one", **ROWS)
    content = bytearray(file.getvalue())
    content[content.index(b"PK\1\2") + 10] = 99
    return bytes(content)


UNKNOWN = unknown_compression()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            None,
            "tar.npz is missing, the teacher's embeddings of .*0.tar: write",
        ),
        (b"", "is not a file of teacher embeddings: File is not a zip file"),
        (UNKNOWN, "model is compressed; wanted a file of numpy.savez"),
        (without("texts"), "There is no item named 'texts.npy'"),
        ({n: rows[:29] for n, rows in ROWS.items()}, "of 29 pictures.* has 30 records"),
        (ROWS | {"images": np.zeros((31, 5), "f2"), "counts": [1] * 30}, "31 pictures"),
        (ROWS | {"texts": ROWS["texts"][:29]}, "30 pictures and 29 texts"),
        (
            ROWS | {"counts": [1.0] * 30},
            "counts is float64 .30,.; wanted whole numbers",
        ),
        (ROWS | {"counts": [-1, 3] * 15}, "counts has -1; wanted numbers from 0"),
        (ROWS | {"counts": 1}, "counts is int64 ..; wanted whole numbers, one for"),
        (ROWS | {"counts": [2] * 30}, "30 texts, and counts is .30,. with the sum 60"),
        ({n: rows[:, :4] + 0 for n, rows in ROWS.items()}, "of 4 numbers, and .* is 5"),
        (ROWS | {"texts": ROWS["texts"][:, :4] + 0}, "have 5 numbers, those of texts"),
        (ROWS | {"images": ROWS["images"].astype(float)}, "images is float64 .30, 5."),
        (ROWS | {"images": np.asfortranarray(ROWS["images"])}, "Fortran's order"),
        (ROWS | {"images": np.zeros(30, "f2")}, "images is float16 .30,.; wanted rows"),
        (ROWS | {"images": ROWS["images"] * np.nan}, "no embedding of the first 16"),
        (ROWS | {"images": ROWS["images"] * 0}, "are zero or not finite"),
        (ROWS | {"shard_bytes": 7}, "is of a shard of 7 bytes, and .*00000.tar has"),
        (ROWS | {"features": ["json/a"]}, "texts of json/a, and the config names text"),
        (ROWS | {"shard_bytes": [7, 7]}, "shard_bytes is int64 .2,.; wanted one whole"),
        (ROWS | {"shard_bytes": "7"}, "shard_bytes is <U1 ..; wanted one whole number"),
        (ROWS | {"features": "text"}, "features is <U4 ..; wanted names in a list"),
        (ROWS | {"features": [b"text"]}, "features is .S4 .1,.; wanted names in a"),
        (ROWS | {"model": ["a", "b"]}, "model is <U1 .2,.; wanted one name"),
        (ROWS | {"model": "other"}, "are of 2 teachers .one, other.; wanted one"),
    ],
)
def test_wrong_files_are_refused_before_training(taught, tmp_path, arrays, message):
    part = dataclasses.replace(taught[0]["webdataset"], teacher=str(tmp_path))
    write_teacher(tmp_path, part, model="one")
    path = tmp_path / "00000.tar.npz"
    path.unlink()
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(InputError, match=message):
        open_batches({"a": part}, teacher_width=WIDTH)


def test_one_folder_cannot_hold_the_embeddings_of_two_shards(taught, tmp_path):
    """Shards of two folders may have the same name; one dataset may be read twice."""
    part = dataclasses.replace(taught[0]["parquet"], teacher=str(tmp_path))
    write_teacher(tmp_path, part)
    twice = {"a": part, "b": dataclasses.replace(part, max_pairs=40)}
    open_batches(twice, teacher_width=WIDTH).close()
    copy = tmp_path / "copy"
    shutil.copytree(part.directory, copy)
    other = dataclasses.replace(part, directory=str(copy))
    with pytest.raises(InputError, match=r"train-0.*npz would have .* and of .*copy"):
        open_batches({"a": part, "b": other}, teacher_width=WIDTH)


def test_compressed_and_encrypted_files_are_refused(taught, tmp_path):
    part = dataclasses.replace(taught[0]["webdataset"], teacher=str(tmp_path))
    write_teacher(tmp_path, part)
    path = tmp_path / "00002.tar.npz"
    np.savez(path, **ROWS)
    content = bytearray(path.read_bytes())
    counts = io.BytesIO()
    np.save(counts, np.ones(30, int))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("counts.npy", counts.getvalue())
    with pytest.raises(InputError, match=r"00002.*counts is compressed"):
        open_batches({"a": part}, teacher_width=WIDTH)
    np.savez_compressed(path, **ROWS)
    with pytest.raises(InputError, match=r"00002.*images is compressed"):
        open_batches({"a": part}, teacher_width=WIDTH)
    content[content.index(b"PK\1\2") + 8] ^= 1  # the flag of an encrypted member
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"00002.*images.npy.* is encrypted"):
        open_batches({"a": part}, teacher_width=WIDTH)


def test_a_file_that_is_lost_during_training_is_one_line(taught, tmp_path):
    part = dataclasses.replace(taught[0]["parquet"], teacher=str(tmp_path))
    write_teacher(tmp_path, part)
    drawn = open_batches({"a": part}, teacher_width=WIDTH)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/train-0000")):
        list(itertools.islice(drawn, 30))


def test_all_datasets_or_none_have_a_teacher():
    parts = {"a": DatasetConfig("a", teacher="b"), "b": DatasetConfig("b")}
    with pytest.raises(ValueError, match=r"width is 0; wanted .* datasets \['a'\]"):
        InputConfig(parts, PREPROCESS)
    with pytest.raises(ValueError, match=r"width is 5, but datasets \['b'\] have no"):
        InputConfig(parts, PREPROCESS, teacher_width=5)
    with pytest.raises(ValueError, match="label_feature is 'l' and teacher 'b'"):
        DatasetConfig("a", label_feature="l", teacher="b")
