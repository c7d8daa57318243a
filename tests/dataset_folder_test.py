"""Damaged files of a dataset end in one line with the path and the command to run."""

import pathlib
import pickle

import pytest
import tensorflow as tf

from align_jax import dataset_folder, places
from align_jax.dataset_folder import DamagedFileError, open_folder, read_manifest
from align_jax.errors import InputError
from align_jax.input.datasets import DatasetConfig
from align_jax.input.evaluation_records import LabelledPictures, evaluation_records
from align_jax.input.shards import open_shards
from data.doctor.__main__ import diagnose
from tests import tiny
from tests.input.batches import batches, open_batches

INFO, FEATURES = "dataset_info.json", "features.json"
SHARD = b'{"name": "a", "records": 1, "bytes": "x", "sha256": "0"}'


@pytest.fixture
def folder(tmp_path):
    return pathlib.Path(tiny.write_training(tmp_path / "a set", [12, 12, 12]))


def damaged(path, action):
    with pytest.raises(DamagedFileError) as error:
        action()
    assert error.value.path == str(path)
    line = str(pickle.loads(pickle.dumps(error.value)))
    assert line.startswith(f"{path} is damaged: ")
    assert f"copy it again, or run `python -m data.doctor '{path.parent}'`" in line
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        (INFO, lambda content: content[: len(content) // 2], "Unterminated string"),
        (INFO, lambda content: content.replace(b"tiny", b"t\xefny"), "can't decode"),
        (INFO, lambda content: content.replace(b"12", b"-12"), "has a negative size"),
        (INFO, lambda content: b"[" * 100_000, "recursion"),
        (INFO, lambda content: content.replace(b'"12"', b'"x"'), "shardLengths"),
        (FEATURES, lambda content: content[:100], "Expecting property name"),
        (FEATURES, lambda content: content.replace(b".Text", b".Tixt"), "Tixt"),
        (FEATURES, lambda content: b"[]", "holds a list; wanted an object"),
    ],
)
def test_damaged_metadata_are_named(folder, name, damage, reason, capsys):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    assert reason in damaged(path, lambda: open_shards(str(folder), "train"))
    damaged(path, lambda: evaluation_records(str(folder), "train"))
    (finding,) = diagnose(folder)
    assert (finding.what, finding.where) == (name, str(path))
    assert reason in finding.found


def test_features_that_are_missing_are_named(folder):
    (folder / FEATURES).unlink()
    assert "no such file" in damaged(folder / FEATURES, lambda: open_folder(folder))


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b'{"shards": 3}',
        b'{"shards": [' + SHARD + b"]}",
        b'{"shards": [',
        b"\xff",
    ],
)
def test_a_damaged_manifest_is_named(folder, content):
    path = folder / "manifest.json"
    path.write_bytes(content)
    damaged(path, lambda: read_manifest(folder))
    damaged(path, lambda: open_shards(str(folder), "train"))
    assert "manifest.json" in [finding.what for finding in diagnose(folder)]


def drop_records(path, left):
    """Rewrites a shard with its first records, which are whole."""
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records[:left]:
            writer.write(record)


def damage_shard(path, damage):
    if damage == "dropped":
        drop_records(path, 1)
        return
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-200] ^= 1
    elif damage == "cut":
        del content[-10:]
    path.write_bytes(content)
    if damage == "no examples":
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(12):
                writer.write(b"\xff" * 50)


@pytest.mark.parametrize("damage", ["flipped", "cut", "no examples"])
def test_a_damaged_shard_is_named_by_training_and_evaluation(folder, damage):
    path = folder / "tiny-train.tfrecord-00001-of-00003"
    damage_shard(path, damage)
    damaged(path, lambda: batches({"tiny": DatasetConfig(str(folder))}, 12))
    damaged(path, lambda: evaluation_records(str(folder), "train[:90%]"))


def test_a_shard_that_has_lost_records_is_named(folder):
    path = folder / "tiny-train.tfrecord-00001-of-00003"
    drawn = open_batches({"tiny": DatasetConfig(str(folder))})
    drop_records(path, 5)
    line = damaged(path, lambda: [next(drawn) for _ in range(60)])
    assert "it has 5 records; wanted 12" in line
    drawn.close()


@pytest.mark.parametrize("damage", ["flipped", "dropped"])
def test_a_damaged_shard_is_named_wherever_it_is_read(tmp_path, damage):
    folder = pathlib.Path(tiny.write_evaluation(tmp_path / "test set"))
    (path,) = folder.glob("*.tfrecord-*")
    pictures = LabelledPictures(str(folder), "test")
    damage_shard(path, damage)
    damaged(path, pictures.labels)
    damaged(path, lambda: [*pictures])
    damaged(path, lambda: [*pictures.pictures([0, pictures.count - 1])])


@pytest.mark.parametrize(
    "kind", [tf.errors.PermissionDeniedError, tf.errors.UnavailableError]
)
def test_storage_that_refuses_to_read_is_no_damage(folder, kind, monkeypatch):
    path = folder / "tiny-train.tfrecord-00001-of-00003"
    refusal = kind(None, None, "status 403")
    for again in (refusal, None):
        monkeypatch.setattr(dataset_folder, "_read_to_end", lambda *_, e=again: e)
        with pytest.raises(InputError) as error:
            with dataset_folder.reading_records(lambda: {str(path): 12}):
                raise refusal
        assert not isinstance(error.value, DamagedFileError)
        where = folder if again is None else path
        assert str(error.value) == f"{where} cannot be read: status 403"
    (folder / INFO).unlink()
    (folder / INFO).mkdir()
    with pytest.raises(InputError, match="json cannot be read: ") as error:
        open_folder(folder)
    assert not isinstance(error.value, DamagedFileError)


def test_records_without_a_feature_are_said_to_be_of_another_dataset(folder):
    path = folder / "tiny-train.tfrecord-00002-of-00003"
    example = tf.train.Example()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(12):
            writer.write(example.SerializeToString())
    with pytest.raises(InputError, match=r"a record of .*a set has other features"):
        evaluation_records(str(folder), "train")


def test_a_missing_record_within_the_framing_s_bytes_is_noticed(tmp_path):
    folder = pathlib.Path(tiny.write_training(tmp_path / "cut", [30, 30]))
    shards = sorted(folder.glob("*.tfrecord-*"))
    total = sum(path.stat().st_size for path in shards)
    info = (folder / INFO).read_text()
    raw = info.replace(
        '"name": "train"', f'"numBytes": "{total - 60 * 16}", "name": "train"'
    )
    (folder / INFO).write_text(raw)
    assert len(open_shards(str(folder), "train")) == 2
    drop_records(shards[1], 29)
    with pytest.raises(
        InputError, match="00001-of-00002 is cut short: it has 29 whole"
    ):
        open_shards(str(folder), "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "lacks the field 'kind'"),
        (b'{"kind": 3}', "kind is a int; wanted str"),
        (b'{"kind": "\xe9"}', "can't decode"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_fields_of_an_object_are_checked(tmp_path, content, message):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        places.read_object(path, {"kind": str})
    assert str(error.value).startswith(str(path))
