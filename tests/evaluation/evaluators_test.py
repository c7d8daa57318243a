import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from align_jax.embed.embedder import Embedder
from align_jax.errors import InputError
from align_jax.evaluation.evaluators import EVALUATORS, WITHOUT_EMBEDDINGS
from align_jax.evaluation.evaluators.retrieval import Retrieval, RetrievalConfig
from align_jax.evaluation.evaluators.zero_shot import ZeroShot, ZeroShotConfig
from align_jax.evaluation.runner import (
    check_widths,
    fill_evaluators,
    make_evaluators,
    run_evaluators,
)
from align_jax.models.dual_encoder import DualEncoder
from align_jax.models.parameters import unflatten
from align_jax.weights.source import open_weights
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_evaluation(tmp_path_factory.mktemp("data") / "test")


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
                "single": "the {}",
            },
            "alike": {
                "kind": "neighbours",
                "directory": directory,
                "split": "test",
                "index_split": "test",
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
    assert scores["eval/pairs/mean_recall"] == 1.0
    for name in ("top1", "mean_per_class", "single_prompt_top1", "bare_name_top1"):
        assert scores[f"eval/colour/{name}"] == 1.0
    assert scores["eval/colour/ensemble_gain"] == 0.0
    assert scores["eval/colour/ensemble_gain_over_bare_name"] == 0.0
    assert scores["eval/colour/prompts"] == 6
    assert scores["eval/colour/majority"] == pytest.approx(1 / 3)
    assert scores["eval/alike/recall@1"] == scores["eval/alike/recall@5"] == 1.0


def test_examples_show_what_was_asked_and_what_was_found(directory):
    encoder = FixedEncoder(perfect, perfect)
    evaluators = all_evaluators(directory)
    (classified,) = evaluators["colour"].examples(encoder).values()
    (alike,) = evaluators["alike"].examples(encoder).values()
    of_pictures, of_texts = evaluators["pairs"].examples(encoder).values()
    for example in classified:
        colour, _ = encoder.names[example.query.picture].split()
        assert example.query.text == colour == example.answers[0].item.text
        assert [answer.right for answer in example.answers] == [True, False, False]
    for example in alike:
        assert example.answers[0].item.picture == example.query.picture
        for item, _, right in example.answers:
            assert encoder.names[item.picture].split()[0] == item.text
            assert right == (item.text == example.query.text)
    for example in of_pictures:
        name = encoder.names[example.query.picture]
        assert example.answers[0].item.text == name == example.right.text
    for example in of_texts:
        best = example.answers[0].item
        assert encoder.names[best.picture] == example.query.text == best.text


def test_a_gain_is_over_the_single_prompt_or_over_the_bare_name(directory):
    def embed(text):
        wrong = {"green": "red", "the green": "red", "the blue": "red"}
        return perfect(wrong.get(text, text))

    evaluator = all_evaluators(directory)["colour"]
    evaluator.prompts.templates[:] = ["{} left"]
    scores = dict(evaluator.run(FixedEncoder(perfect, embed)))
    assert scores["top1"] == 1.0
    for name, right in (("single_prompt", 1 / 3), ("bare_name", 2 / 3)):
        assert scores[f"{name}_top1"] == pytest.approx(right)
    assert scores["ensemble_gain"] == pytest.approx(2 / 3)
    assert scores["ensemble_gain_over_bare_name"] == pytest.approx(1 / 3)


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
    evaluators = all_evaluators(directory)
    if broken == "texts":
        del evaluators["alike"]  # it embeds no texts
    for evaluator in evaluators.values():
        with pytest.raises(FloatingPointError, match="embeddings are not finite"):
            dict(evaluator.run(encoder))


def test_scores_depend_on_neither_batch_size_nor_devices(directory, tmp_path, mesh_of):
    weights = open_weights(tiny.write_model(tmp_path / "model"))
    found = []
    for devices, batch_size in ((1, 5), (8, 16)):
        embedder = Embedder(
            DualEncoder(weights.config, batch_norm_group=1),
            weights.tokenizer,
            weights.preprocess,
            mesh_of(devices),
            batch_size,
        )
        embedder.load(unflatten(weights.variables))
        found.append(dict(run_evaluators(all_evaluators(directory), embedder)))
    assert found[0] == found[1]
    assert len(set(found[0].values())) > 5


def write_texts(folder, *texts):
    """Writes a dataset with one picture for each list of texts."""
    rows = [
        {
            "image": tiny._bytes(tiny.draw(name, 110)),
            "texts": tiny._bytes(*(text.encode() for text in own)),
        }
        for name, own in zip(tiny.NAMES, texts, strict=False)
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "texts": tfds.features.Sequence(tfds.features.Text()),
    }
    return tiny.write_dataset(folder, "test", [rows], features)


@pytest.fixture
def repeated(tmp_path):
    """Writes a dataset: one text on two pictures, another one twice on one picture."""
    return write_texts(tmp_path / "d", ["a", "b"], ["b"], ["c", "c"])


@pytest.mark.parametrize("bare", [0, 2])
def test_a_picture_without_texts_is_a_candidate_and_no_query(tmp_path, bare):
    texts = [[name] for name in tiny.NAMES[:4]]
    texts[bare] = []
    evaluator = Retrieval(RetrievalConfig(write_texts(tmp_path / "d", *texts), "test"))
    # All pictures are alike, and so are all texts: no query has a right answer on top.
    scores = dict(evaluator.run(FixedEncoder(constant, constant)))
    assert scores["i2t_queries"] == scores["t2i_queries"] == 3
    assert scores["t2i_candidates"] == 4
    assert scores["i2t_recall@1"] == scores["t2i_recall@1"] == 0
    scores = dict(evaluator.run(FixedEncoder(perfect, perfect)))
    assert scores["i2t_recall@1"] == scores["t2i_recall@1"] == 1


def test_a_split_without_texts_is_refused(tmp_path):
    path = write_texts(tmp_path / "d", [], [])
    with pytest.raises(InputError, match=r"no picture of split 'test' .* has a text"):
        Retrieval(RetrievalConfig(path, "test"))


def test_equal_texts_are_one_candidate_where_they_are_merged(repeated):
    evaluator = Retrieval(RetrievalConfig(repeated, "test", merge_texts=True))
    assert evaluator.texts == ["a", "b", "c"]
    assert evaluator.pairs.tolist() == [[0, 0], [0, 1], [1, 1], [2, 2]]
    assert evaluator.image_queries.all()
    assert evaluator.text_queries.all()


def test_equal_texts_are_candidates_of_their_own_else(repeated):
    evaluator = Retrieval(RetrievalConfig(repeated, "test", expected_texts=5))
    assert evaluator.texts == ["a", "b", "b", "c", "c"]
    assert evaluator.pairs.tolist() == [[0, 0], [0, 1], [1, 2], [2, 3], [2, 4]]
    first = Retrieval(RetrievalConfig(repeated, "test", texts_per_image=1))
    assert first.texts == ["a", "b", "c"]


def test_counts_that_differ_are_refused(repeated, directory):
    with pytest.raises(InputError, match="has 3 pictures; wanted 1,000"):
        Retrieval(RetrievalConfig(repeated, "test", expected_images=1000))
    with pytest.raises(InputError, match="no feature 'captions'; it has image, texts"):
        Retrieval(RetrievalConfig(repeated, "test", texts_feature="captions"))
    with pytest.raises(InputError, match="has 5 texts; wanted 5,000"):
        Retrieval(RetrievalConfig(repeated, "test", expected_texts=5000))
    with pytest.raises(InputError, match="has 12 pictures; wanted 50,000"):
        ZeroShot(ZeroShotConfig(directory, "test", "cifar", expected_pictures=50_000))


def test_an_unknown_evaluator_or_field_is_refused():
    with pytest.raises(
        InputError, match=r"evaluators\.a\.kind is 'zeroshot'; did you mean"
    ):
        make_evaluators({"a": {"kind": "zeroshot"}})
    with pytest.raises(InputError, match=r"evaluators\.a has no field 'splt'"):
        make_evaluators({"a": {"kind": "retrieval", "splt": "test"}})
    with pytest.raises(InputError, match=r"evaluators\.a lacks the field 'kind'"):
        make_evaluators({"a": {}})


@pytest.mark.parametrize("kind", WITHOUT_EMBEDDINGS)
def test_a_width_of_scores_without_embeddings_is_refused(directory, kind, monkeypatch):
    fields = {"a": {"kind": kind, "width": 4}}
    monkeypatch.setattr(EVALUATORS[kind], "Config", dataclasses.make_dataclass("C", []))
    message = rf"evaluators\.a\.width is 4, but the kind '{kind}' scores no embeddings"
    with pytest.raises(InputError, match=message):
        fill_evaluators(fields)
    del fields["a"]["width"]
    assert fill_evaluators(fields) == {"a": {"kind": kind}}


def test_a_width_is_at_most_that_of_the_embeddings(directory):
    pairs = {"kind": "retrieval", "directory": directory, "split": "test"}
    fields = {"whole": pairs, "short": pairs | {"width": 8}}
    check_widths(fields, 8)
    message = r"evaluators\.short\.width is 8, but embeddings have 7 numbers"
    with pytest.raises(InputError, match=message):
        check_widths(fields, 7)
