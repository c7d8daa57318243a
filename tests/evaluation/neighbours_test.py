import numpy as np
import pytest
import tensorflow_datasets as tfds

from align_jax.errors import InputError
from align_jax.evaluation.evaluators.neighbours import Neighbours, NeighboursConfig
from align_jax.input.evaluation_records import LabelledPictures
from tests import tiny
from tests.fixed_encoder import FixedEncoder


def write_labelled(folder, shade, labels):
    rows = [
        {"image": tiny._bytes(tiny.draw(name, shade)), "label": tiny.whole(label)}
        for name, label in zip(tiny.NAMES, labels, strict=True)
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    return tiny.write_dataset(folder, "train", [rows[:3], rows[3:]], features)


def test_neighbours_are_sought_in_the_other_split(tmp_path):
    queries = write_labelled(tmp_path / "queries", 110, [0, 0, 1, 1, 2, 2] * 2)
    index = write_labelled(tmp_path / "index", 90, [0, 1, 1, 0, 2, 2, 0, 0, 1, 1, 2, 2])
    evaluator = Neighbours(NeighboursConfig(queries, "train", "train"))
    evaluator.index = LabelledPictures(index, "train")

    # The same name is nearest, then the names before and after it.
    def turned(name):
        angle = tiny.NAMES.index(name) / 12
        return np.array([np.cos(angle), np.sin(angle)])

    scores = dict(evaluator.run(FixedEncoder(turned, turned)))
    assert scores["recall@1"] == pytest.approx(10 / 12)
    assert scores["recall@5"] == 1.0
    assert scores["queries"] == scores["candidates"] == 12
    with pytest.raises(InputError, match="has 12 pictures; wanted 50,000"):
        Neighbours(NeighboursConfig(queries, "train", expected_queries=50_000))
    with pytest.raises(InputError, match="has no feature 'fine'; it has image, label"):
        Neighbours(NeighboursConfig(queries, "train", "train", label_feature="fine"))


def test_the_newest_version_in_a_folder_is_taken(tmp_path):
    for version, count in (("9.0.0", 2), ("10.0.0", 1)):
        rows = [
            {"image": tiny.picture(i), "label": tiny.whole(i)} for i in range(count)
        ]
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        tiny.write_dataset(tmp_path / version, "train", [rows], features)
    assert LabelledPictures(str(tmp_path), "train").count == 1
    assert LabelledPictures(str(tmp_path / "9.0.0"), "train").count == 2


def test_a_picture_is_read_again_by_its_index_among_the_labelled(tmp_path):
    labels = [0, -1, 1, 1, -1, 2] * 2
    path = write_labelled(tmp_path / "d", 110, labels)
    data = LabelledPictures(path, "train")
    given = [picture for picture, _ in data]
    assert len(given) == 8
    assert data.some([6, 1, 6, 4]) == {i: given[i] for i in (1, 4, 6)}
    assert data.some([]) == {}
    assert list(data.pictures([])) == []
