import numpy as np
import pytest
import tensorflow_datasets as tfds

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.evaluation.evaluators.few_shot import FewShot, FewShotConfig, draw_shots
from align_jax.evaluation.evaluators.linear_probe import LinearProbe, LinearProbeConfig
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Writes pictures with colours as labels, and one picture without a label."""
    folder = tmp_path_factory.mktemp("labelled")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=list(tiny.COLOURS)),
    }
    rows = [
        {
            "image": tiny.text(tiny.draw(name, shade)),
            "label": tiny.whole(list(tiny.COLOURS).index(name.split()[0])),
        }
        for shade in (90, 110)
        for name in tiny.NAMES
    ]
    rows.insert(5, {"image": tiny.picture(0), "label": tiny.whole(-1)})
    return tiny.write_dataset(folder / "d", "train", [rows[:9], rows[9:]], features)


def test_a_linear_probe_of_good_features_is_right(directories):
    splits = ("train[13:]", "train[:13]", "train[13:]")
    config = LinearProbeConfig(directories, *splits)
    scores = dict(LinearProbe(config).run(FixedEncoder(perfect, perfect)))
    assert scores["top1"] == scores["mean_per_class"] == 1.0
    assert (scores["validation_top1"], scores["validation_queries"]) == (1.0, 12)
    assert (scores["queries"], scores["candidates"]) == (12, 3)
    assert scores["training_pictures"] == 24
    assert scores["majority"] == pytest.approx(1 / 3)


def test_the_validation_s_score_is_of_the_training_pictures_fit(directories):
    """No training picture is blue, but two thirds of the validation pictures are."""

    def by_itself(name):  # the features of all pictures are orthogonal
        return np.eye(12)[tiny.NAMES.index(name)]

    config = LinearProbeConfig(directories, "train[19:]", "train[13:19]", "train[19:]")
    scores = dict(LinearProbe(config).run(FixedEncoder(by_itself, by_itself)))
    assert scores["top1"] == 1.0  # the final fit has seen the validation pictures
    assert scores["validation_top1"] <= 1 / 3


def test_features_that_say_nothing_give_the_largest_class(directories):
    constant = lambda _: np.ones(7)  # noqa: E731
    config = LinearProbeConfig(directories, "train[13:]", "train[:9]", "train[9:13]")
    scores = dict(LinearProbe(config).run(FixedEncoder(constant, constant)))
    assert scores["top1"] == pytest.approx(1 / 3)


def test_few_shots_of_good_features_are_nearly_right(directories):
    config = FewShotConfig(directories, "train", shots=(1, 4), penalty=1.0)
    scores = dict(FewShot(config).run(FixedEncoder(perfect, perfect)))
    assert scores["4_shot_top1"] > 0.9 > scores["majority"]
    assert scores["4_shot_top1"] >= scores["1_shot_top1"] > 1 / 3
    assert scores["queries"] == 24
    assert scores["1_shot_std"] >= 0


def test_draws_hold_each_class_so_often_and_smaller_ones_are_part_of_larger():
    labels = np.array([2, 0, -1, 2, 2, 0, 1, 2, 2, -1])
    indices, turns = draw_shots(labels, 3, 0)
    assert (np.diff(indices) > 0).all()
    for shots, counts in ((1, [1, 1, 1]), (2, [2, 1, 2]), (3, [2, 1, 3])):
        assert np.bincount(labels[indices[turns < shots]]).tolist() == counts
    again, _ = draw_shots(labels, 3, 0)
    np.testing.assert_array_equal(again, indices)
    drawn = {tuple(draw_shots(labels, 1, seed)[0]) for seed in range(20)}
    assert len(drawn) > 3


def test_a_split_that_is_not_there_is_refused(directories):
    with pytest.raises(InputError, match="no split 'validation'; it has"):
        LinearProbe(LinearProbeConfig(directories, "train"))
    with pytest.raises(InputError, match=r"'train\[9' is no split of"):
        LinearProbe(LinearProbeConfig(directories, "train", "train[9", "train"))
    fields = {"directory": directories, "split": "train", "shots": (0, 1)}
    with pytest.raises(InputError, match=r"shots\[0\] is 0; wanted 1 or more"):
        read_config(FewShotConfig, fields)
