"""VTAB-1k: labels computed by hand, and tasks written from data in TFDS's features."""

import dataclasses
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from align_jax.errors import InputError, run_command
from align_jax.input.evaluation_records import LabelledPictures
from align_jax.pictures import read_picture
from configs.vtab import GROUPS
from data import vtab
from data.evaluation_sets.vtab_tasks import TASKS

PLAIN = [*GROUPS["natural"], *GROUPS["specialized"]]


def test_there_are_7_4_and_8_tasks_of_so_many_classes():
    assert [len(tasks) for tasks in GROUPS.values()] == [7, 4, 8]
    classes = {name: n for tasks in GROUPS.values() for name, n in tasks.items()}
    assert {name: task.classes for name, task in TASKS.items()} == classes


@pytest.mark.parametrize("name", PLAIN)
def test_natural_and_specialized_tasks_have_the_dataset_s_label(name):
    assert TASKS[name].label({"label": np.int64(3)}) == 3


def test_parts_of_800_and_200_do_not_overlap():
    for name, task in TASKS.items():
        assert task.train == "train[:800]", name
        base, _, bounds = task.validation.partition("[")
        first, last = bounds.rstrip("]").split(":")
        assert int(last) - int(first or 0) == 200, name
        assert base != "train" or int(first) >= 800, name
        if task.test.split("[")[0] == base:
            assert int(task.test.split("[")[1].split(":")[0]) >= int(last), name


def clevr(depths):
    coordinates = [[1.0, 2.0, depth] for depth in depths]
    objects = {
        "size": np.zeros(len(depths), np.int64),
        "pixel_coords": np.array(coordinates, np.float32),
    }
    return {"objects": objects}


def test_clevr_counts_from_three_and_bins_the_closest_depth():
    count, distance = (TASKS[f"clevr_{n}"].label for n in ("count", "distance"))
    assert [count(clevr([9.0] * n)) for n in (3, 4, 10)] == [0, 1, 7]
    found = [
        distance(clevr([30.0, depth, 12.0])) for depth in (7, 8, 8.2, 8.7, 9.2, 9.7, 11)
    ]
    assert found == [0, 0, 1, 2, 3, 4, 5]


def kitti(*objects):
    return {
        "objects": {
            "location": np.array([[0.0, 1.0, z] for _, z in objects], np.float32),
            "type": np.array([kind for kind, _ in objects], np.int64),
        }
    }


def test_kitti_bins_the_closest_car_van_or_truck():
    label = TASKS["kitti_distance"].label
    assert label(kitti((0, 7.5), (1, 30.0))) == 0
    assert label(kitti((0, 19.0), (3, 2.0))) == 1  # 3 is a pedestrian
    assert label(kitti((2, 20.5))) == 2
    assert label(kitti((3, 5.0), (5, 6.0))) == 3
    assert label(kitti()) == 3


def test_dsprites_has_sixteen_bins_and_smallnorb_its_own_labels():
    location, turn = (TASKS[f"dsprites_{n}"].label for n in ("location", "orientation"))
    places = [location({"label_x_position": np.int64(v)}) for v in range(32)]
    assert places == [v // 2 for v in range(32)]
    turns = [turn({"label_orientation": np.int64(v)}) for v in range(40)]
    assert turns[:6] == [0, 0, 0, 1, 1, 2]
    assert turns[-1] == 15
    assert np.bincount(turns).tolist() == [3, 2] * 8
    record = {"label_azimuth": np.int64(17), "label_elevation": np.int64(8)}
    assert TASKS["smallnorb_azimuth"].label(record) == 17
    assert TASKS["smallnorb_elevation"].label(record) == 8


def store(root, name, features, rows):
    """Writes 30 training rows and 5 test rows, encoded by TFDS's features."""
    folder = root / name / "2.0.1"
    folder.mkdir(parents=True)
    kinds, infos = tfds.features.FeaturesDict(features), []
    for split, part in (("train", rows[:30]), ("test", rows[30:])):
        template = tfds.core.ShardedFileTemplate(
            data_dir=str(folder),
            dataset_name=name,
            split=split,
            filetype_suffix="tfrecord",
        )
        path = folder / f"{name}-{split}.tfrecord-00000-of-00001"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for row in part:
                writer.write(kinds.serialize_example(kinds.encode_example(row)))
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(part)],
                num_bytes=0,
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=kinds,
        split_infos=infos,
        filename_template=None,
    )


def shorten(monkeypatch, name):
    parts = {"train": "train[:8]", "validation": "train[20:22]", "test": "test"}
    monkeypatch.setitem(
        TASKS, name, dataclasses.replace(TASKS[name], **parts, test_pictures=5)
    )
    monkeypatch.setattr(vtab, "SIZES", {"train": 8, "validation": 2})


def read_task(folder, split):
    data = LabelledPictures(str(folder), split)
    return zip(*data, strict=True)


def test_a_plain_task_keeps_the_pictures_files(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    rows = [
        {"image": random.integers(0, 255, (4, 5, 3), np.uint8), "label": i % 47}
        for i in range(35)
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=47),
    }
    store(tmp_path / "tfds", "dtd", features, rows)
    shorten(monkeypatch, "dtd")
    vtab.write_task("dtd", tmp_path / "tfds", tmp_path / "out")
    dataset = tfds.builder_from_directory(str(tmp_path / "tfds" / "dtd" / "2.0.1"))
    for split, source in (("train", "train[:8]"), ("validation", "train[20:22]")):
        pictures, labels = read_task(tmp_path / "out" / "dtd", split)
        expected = [*dataset.as_dataset(split=source).as_numpy_iterator()]
        assert list(labels) == [row["label"] for row in expected]
        for picture, row in zip(pictures, expected, strict=True):
            np.testing.assert_array_equal(read_picture(picture), row["image"])
    pictures, _ = read_task(tmp_path / "out" / "dtd", "test")
    assert len(pictures) == 5


def test_a_task_of_grey_pictures_is_made_bright(tmp_path, monkeypatch):
    rows = [
        {"image": np.full((4, 4, 1), i % 2, np.uint8), "label_x_position": i % 32}
        for i in range(35)
    ]
    features = {
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "label_x_position": tfds.features.ClassLabel(num_classes=32),
    }
    store(tmp_path / "tfds", "dsprites", features, rows)
    shorten(monkeypatch, "dsprites_location")
    vtab.write_task("dsprites_location", tmp_path / "tfds", tmp_path / "out")
    pictures, labels = read_task(tmp_path / "out" / "dsprites_location", "test")
    levels = {int(level) for p in pictures for level in np.unique(read_picture(p))}
    assert levels <= {0, 255}
    assert read_picture(pictures[0]).shape == (4, 4, 3)
    assert set(labels) <= {i % 32 // 2 for i in range(30, 35)}


def test_a_task_of_objects_derives_its_label(tmp_path, monkeypatch):
    rows = [
        {
            "image": np.zeros((4, 4, 3), np.uint8),
            "objects": {
                "type": [0] * (i % 3),
                "location": [[0.0, 0.0, 10.0]] * (i % 3),
            },
        }
        for i in range(35)
    ]
    features = {
        "image": tfds.features.Image(),
        "objects": tfds.features.Sequence(
            {
                "type": tfds.features.ClassLabel(num_classes=8),
                "location": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            }
        ),
    }
    store(tmp_path / "tfds", "kitti", features, rows)
    shorten(monkeypatch, "kitti_distance")
    vtab.write_task("kitti_distance", tmp_path / "tfds", tmp_path / "out")
    _, labels = read_task(tmp_path / "out" / "kitti_distance", "test")
    assert sorted(labels) == [1, 1, 1, 3, 3]  # rows 30 and 33 have no vehicle
    assert vtab.write_task("kitti_distance", tmp_path, tmp_path / "out") is None


def test_missing_and_other_datasets_are_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"no dataset 'dtd' in .*; `tfds build dtd`"):
        vtab.find_dataset(tmp_path, "dtd")
    with pytest.raises(InputError, match="resisc45` prepares it and needs a file"):
        vtab.find_dataset(tmp_path, "resisc45")
    rows = [{"image": np.zeros((4, 4, 3), np.uint8), "label": 46} for _ in range(35)]
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=47),
    }
    store(tmp_path, "dtd", features, rows)
    with pytest.raises(InputError, match=r"\[:800\] of .* has 30 pictures; wanted 800"):
        vtab.write_task("dtd", tmp_path, tmp_path / "out")
    shorten(monkeypatch, "dtd")
    monkeypatch.setitem(TASKS, "dtd", dataclasses.replace(TASKS["dtd"], classes=46))
    with pytest.raises(InputError, match=r"picture 0 of .* has the label 46; wanted 0"):
        vtab.write_task("dtd", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "dtd").exists()
    arguments = ["vtab", "--source", str(tmp_path), "--out", "x", "mnist"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert run_command("data.vtab", vtab.main) == 2
    assert "TASK is 'mnist'; known: caltech101" in capsys.readouterr().err


def test_a_task_is_read_from_the_newest_version(tmp_path):
    for version in ("9.0.0", "10.0.0"):
        folder = tmp_path / "dtd" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    assert vtab.find_dataset(tmp_path, "dtd").name == "10.0.0"
