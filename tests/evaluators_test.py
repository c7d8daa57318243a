import json

import numpy as np
import pytest

from align_jax.embedding import class_embeddings
from align_jax.errors import InputError
from align_jax.evaluate import make_evaluators, run_evaluators
from align_jax.evaluators.retrieval import Retrieval, RetrievalConfig
from align_jax.evaluators.zero_shot import ZeroShot, ZeroShotConfig
from tests import tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_evaluation(tmp_path_factory.mktemp("data") / "test")


class FixedEncoder:
    """Maps the i-th picture and the text of its name to chosen vectors."""

    def __init__(self, images, texts):
        self.images, self.texts = images, texts

    def encode_images(self, pictures):
        names = {tiny.draw(name, 110): name for name in tiny.NAMES}
        return np.stack([self.images(names[picture]) for picture in pictures])

    def encode_texts(self, texts):
        return np.stack([self.texts(text) for text in texts])


def perfect(name):
    """Colour in the first three axes, side in the others."""
    words = name.split()
    axes = [*tiny.COLOURS, *tiny.SHAPES]
    vector = np.array([axis in words for axis in axes], float)
    return vector / np.linalg.norm(vector)


def constant(_):
    return np.ones(7) / np.sqrt(7)


def all_evaluators(directory):
    return make_evaluators(
        {
            "pairs": {"kind": "retrieval", "directory": directory, "split": "test"},
            "colour": {
                "kind": "zero_shot",
                "directory": directory,
                "split": "test",
                "prompts": f"{directory}/prompts.json",
            },
        }
    )


def test_a_perfect_encoder_scores_one(directory):
    encoder = FixedEncoder(perfect, perfect)
    scores = dict(run_evaluators(all_evaluators(directory), encoder))
    for name in ("i2t_recall@1", "t2i_recall@1"):
        assert scores[f"eval/pairs/{name}"] == 1.0
    assert scores["eval/pairs/i2t_queries"] == scores["eval/pairs/t2i_queries"] == 8
    assert scores["eval/pairs/i2t_candidates"] == 12
    assert scores["eval/pairs/i2t_chance@1"] == pytest.approx(1 / 12)
    assert scores["eval/colour/top1"] == 1.0
    assert scores["eval/colour/majority"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("broken", ["images", "texts", "both"])
def test_a_constant_encoder_scores_at_or_below_chance(directory, broken):
    encoder = FixedEncoder(
        perfect if broken == "texts" else constant,
        perfect if broken == "images" else constant,
    )
    scores = dict(run_evaluators(all_evaluators(directory), encoder))
    for name, value in scores.items():
        if "_recall@" in name:
            assert value <= scores[name.replace("_recall@", "_chance@")], name
    assert scores["eval/colour/top1"] <= scores["eval/colour/majority"]


@pytest.mark.parametrize("broken", ["images", "texts"])
def test_an_encoder_of_nans_is_an_error_in_every_evaluator(directory, broken):
    nan = lambda _: np.full(7, np.nan)  # noqa: E731
    encoder = FixedEncoder(
        nan if broken == "images" else perfect, nan if broken == "texts" else perfect
    )
    for evaluator in all_evaluators(directory).values():
        with pytest.raises(FloatingPointError, match="scores are not finite"):
            dict(evaluator.run(encoder))


def test_equal_texts_are_one_candidate(tmp_path):
    import tensorflow_datasets as tfds

    rows = [
        {
            "image": tiny._bytes(tiny.draw(name, 110)),
            "texts": tiny._bytes(*(text.encode() for text in texts)),
        }
        for name, texts in zip(
            tiny.NAMES, (["a", "b"], ["b"], ["c", "c"]), strict=False
        )
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "texts": tfds.features.Sequence(tfds.features.Text()),
    }
    directory = tiny.write_dataset(tmp_path / "d", "test", [rows], features)
    evaluator = Retrieval(RetrievalConfig(directory, "test"))
    assert evaluator.texts == ["a", "b", "c"]
    assert evaluator.positives.tolist() == [
        [True, True, False],
        [False, True, False],
        [False, False, True],
    ]
    assert evaluator.image_queries.all() and evaluator.text_queries.all()


def test_class_embeddings_are_means_of_unit_prompts(directory):
    evaluator = ZeroShot(ZeroShotConfig(directory, "test", f"{directory}/prompts.json"))
    assert evaluator.prompts[0] == ["red", "red left"]
    found = class_embeddings(FixedEncoder(perfect, perfect), evaluator.prompts)
    expected = (perfect("red") + perfect("red left")) / 2
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected))


def test_prompts_that_do_not_fit_the_labels_are_refused(directory, tmp_path):
    path = tmp_path / "prompts.json"
    prompts = {"templates": ["{}"], "categories": [{"name": "red", "prompts": ["red"]}]}
    path.write_text(json.dumps(prompts))
    with pytest.raises(InputError, match="labels up to 2; .* describes 1 classes"):
        ZeroShot(ZeroShotConfig(directory, "test", str(path)))


def test_an_unknown_evaluator_or_field_is_refused():
    with pytest.raises(
        InputError, match="evaluators.a.kind is 'zeroshot'; did you mean"
    ):
        make_evaluators({"a": {"kind": "zeroshot"}})
    with pytest.raises(InputError, match="evaluators.a has no field 'splt'"):
        make_evaluators({"a": {"kind": "retrieval", "splt": "test"}})
    with pytest.raises(InputError, match="evaluators.a lacks the field 'kind'"):
        make_evaluators({"a": {}})
