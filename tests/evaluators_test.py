import json

import numpy as np
import pytest
import scipy.stats
import tensorflow_datasets as tfds

from align_jax.convert.source import open_weights
from align_jax.datasets import LabelledPictures
from align_jax.embedding import Embedder, class_embeddings
from align_jax.errors import InputError
from align_jax.evaluate import make_evaluators, run_evaluators
from align_jax.evaluators.neighbours import Neighbours, NeighboursConfig
from align_jax.evaluators.prompts import read_prompts, read_subset
from align_jax.evaluators.retrieval import Retrieval, RetrievalConfig
from align_jax.evaluators.word_similarity import COLUMNS
from align_jax.evaluators.zero_shot import ZeroShot, ZeroShotConfig
from align_jax.models.dual_encoder import DualEncoder
from align_jax.parameters import unflatten
from align_jax.results import PUBLISHED, SCORES
from align_jax.scores import CUTS
from align_jax.sharding import make_mesh
from align_jax.tokenizer import Tokenizer
from configs import zero_shot
from tests import tiny

SHADES = (90, 110)  # of the pictures that a FixedEncoder knows


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_evaluation(tmp_path_factory.mktemp("data") / "test")


class FixedEncoder:
    """Maps a picture of a name, and a text, to chosen vectors."""

    mesh = make_mesh()

    def __init__(self, images, texts):
        self.images, self.texts = images, texts
        self.names = {tiny.draw(n, shade): n for n in tiny.NAMES for shade in SHADES}

    def encode_images(self, pictures):
        return np.concatenate(list(self.stream_images(pictures)))

    def stream_images(self, pictures):
        for picture in pictures:
            yield np.float32([self.images(self.names[picture])])

    def encode_texts(self, texts):
        return np.float32([self.texts(text) for text in texts])

    def project_texts(self, texts):
        return np.float32([len(text) * self.texts(text) for text in texts])

    text_features = project_texts


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
    for name in ("top1", "mean_per_class", "single_prompt_top1"):
        assert scores[f"eval/colour/{name}"] == 1.0
    assert scores["eval/colour/ensemble_gain"] == 0.0
    assert scores["eval/colour/prompts"] == 6
    assert scores["eval/colour/majority"] == pytest.approx(1 / 3)
    assert scores["eval/alike/recall@1"] == scores["eval/alike/recall@5"] == 1.0


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
        del evaluators["alike"]  # which needs none
    for evaluator in evaluators.values():
        with pytest.raises(FloatingPointError, match="embeddings are not finite"):
            dict(evaluator.run(encoder))


def test_scores_depend_on_neither_batch_size_nor_devices(directory, tmp_path, mesh_of):
    weights = open_weights(tiny.write_model(tmp_path / "model"))
    found = []
    for devices, batch_size in ((1, 5), (8, 16)):
        embedder = Embedder(
            DualEncoder(weights.config, batch_norm_group=1),
            Tokenizer(weights.vocabulary, weights.config.text_tower.max_tokens),
            weights.preprocess,
            mesh_of(devices),
            batch_size,
        )
        embedder.load(**unflatten(weights.variables))
        found.append(dict(run_evaluators(all_evaluators(directory), embedder)))
    assert found[0] == found[1]
    assert len(set(found[0].values())) > 5


@pytest.fixture
def repeated(tmp_path):
    """A dataset with a text of two pictures, and one twice on one."""
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
    return tiny.write_dataset(tmp_path / "d", "test", [rows], features)


def test_equal_texts_are_one_candidate_where_they_are_merged(repeated):
    evaluator = Retrieval(RetrievalConfig(repeated, "test", merge_texts=True))
    assert evaluator.texts == ["a", "b", "c"]
    assert evaluator.pairs.tolist() == [[0, 0], [0, 1], [1, 1], [2, 2]]
    assert evaluator.image_queries.all() and evaluator.text_queries.all()


def test_equal_texts_are_candidates_of_their_own_else(repeated):
    evaluator = Retrieval(RetrievalConfig(repeated, "test", expected_texts=5))
    assert evaluator.texts == ["a", "b", "b", "c", "c"]
    assert evaluator.pairs.tolist() == [[0, 0], [0, 1], [1, 2], [2, 3], [2, 4]]
    first = Retrieval(RetrievalConfig(repeated, "test", texts_per_image=1))
    assert first.texts == ["a", "b", "c"]


def test_counts_that_differ_are_refused(repeated, directory):
    with pytest.raises(InputError, match="has 3 pictures; wanted 1000"):
        Retrieval(RetrievalConfig(repeated, "test", expected_images=1000))
    with pytest.raises(InputError, match="has 5 texts; wanted 5000"):
        Retrieval(RetrievalConfig(repeated, "test", expected_texts=5000))
    with pytest.raises(InputError, match="has 12 pictures; wanted 50000"):
        ZeroShot(ZeroShotConfig(directory, "test", "cifar", expected_pictures=50_000))


def test_class_embeddings_are_means_of_unit_prompts_or_of_plain_ones(directory):
    evaluator = ZeroShot(ZeroShotConfig(directory, "test", f"{directory}/prompts.json"))
    prompts = evaluator.prompts.fill()
    assert prompts[0] == ["red", "red left"]
    encoder = FixedEncoder(perfect, perfect)
    for unit, expected in (
        (True, perfect("red") + perfect("red left")),
        (False, 3 * perfect("red") + 8 * perfect("red left")),  # by their lengths
    ):
        found = class_embeddings(encoder, prompts, unit)
        expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_prompts_that_do_not_fit_the_labels_are_refused(directory, tmp_path):
    path = tmp_path / "prompts.json"
    prompts = {"templates": ["{}"], "categories": [{"name": "red", "prompts": ["red"]}]}
    path.write_text(json.dumps(prompts))
    with pytest.raises(InputError, match="describes 1 classes, .* has labels of 3"):
        ZeroShot(ZeroShotConfig(directory, "test", str(path)))
    with pytest.raises(InputError, match="no prompts at nowhere; shipped are cars196"):
        ZeroShot(ZeroShotConfig(directory, "test", "nowhere"))
    path.write_text('{"templates": ["a photo"]}')
    with pytest.raises(InputError, match=r"\['a photo'\]; wanted some with a {}"):
        ZeroShot(ZeroShotConfig(directory, "test", str(path)))


def test_shipped_prompts_have_their_published_counts():
    names = [str(i) for i in range(1000)]
    imagenet = read_prompts("imagenet", names)
    assert len(imagenet.templates) == 80
    assert len(imagenet.classes) == 1000 and len(set(imagenet.classes)) == 998
    assert imagenet.fill()[0][0] == "a bad photo of a tench."
    for name in ("imagenet_a", "imagenet_r"):
        labels = read_subset(name)
        assert len(labels) == 200 and labels == sorted(set(labels))
        assert 0 <= labels[0] and labels[-1] < 1000
    counts = {
        "cars196": 8,
        "cifar": 18,
        "food101": 1,
        "oxford_flowers102": 1,
        "oxford_iiit_pet": 1,
    }
    for name, count in counts.items():
        prompts = read_prompts(name, ["maple_tree", "x"])
        assert prompts.classes == ["maple tree", "x"]
        assert len(set(prompts.templates)) == len(prompts.templates) == count


def label(name):
    """Place of a picture of the tiny drawings among 1,000 classes."""
    return 313 + tiny.NAMES.index(name)


def test_of_a_subset_only_its_classes_compete(tmp_path, monkeypatch):
    names = [f"class {i}" for i in range(1000)]
    rows = [
        {
            "image": tiny._bytes(tiny.draw(name, 110)),
            "label": tiny.whole(label(name)),
        }
        for name in tiny.NAMES[:2]
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=names),
    }
    directory = tiny.write_dataset(tmp_path / "a", "test", [rows], features)
    (tmp_path / "prompts.json").write_text(json.dumps({"templates": ["{}"]}))
    monkeypatch.setattr(
        "align_jax.evaluators.zero_shot.read_subset", lambda name: [2, 313, 314, 900]
    )
    prompts = str(tmp_path / "prompts.json")

    def embed_class(text):  # class 7 is nearest to every picture
        angle = {"class 7": 0.0, "class 313": 0.2, "class 314": 0.3}.get(text, 2.0)
        return np.array([np.cos(angle), np.sin(angle)])

    encoder = FixedEncoder(lambda name: np.array([1.0, 0.0]), embed_class)
    some = dict(
        ZeroShot(ZeroShotConfig(directory, "test", prompts, "imagenet_a")).run(encoder)
    )
    assert (some["top1"], some["top5"], some["candidates"]) == (0.5, 1.0, 4)
    every = dict(ZeroShot(ZeroShotConfig(directory, "test", prompts)).run(encoder))
    assert (every["top1"], every["top5"], every["candidates"]) == (0.0, 1.0, 1000)
    monkeypatch.setattr(
        "align_jax.evaluators.zero_shot.read_subset", lambda name: [2, 313]
    )
    with pytest.raises(InputError, match="label 314, which is none of the 2 classes"):
        dict(ZeroShot(ZeroShotConfig(directory, "test", prompts, "a")).run(encoder))


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

    def turned(name):  # its own picture is nearest, then those of its neighbours
        angle = tiny.NAMES.index(name) / 12
        return np.array([np.cos(angle), np.sin(angle)])

    scores = dict(evaluator.run(FixedEncoder(turned, turned)))
    assert scores["recall@1"] == pytest.approx(10 / 12)
    assert scores["recall@5"] == 1.0
    assert scores["queries"] == scores["candidates"] == 12
    with pytest.raises(InputError, match="has 12 pictures; wanted 50000"):
        Neighbours(NeighboursConfig(queries, "train", expected_queries=50_000))
    with pytest.raises(InputError, match="has no feature 'fine'; it has image, label"):
        Neighbours(NeighboursConfig(queries, "train", "train", label_feature="fine"))


def write_simlex(path, rows):
    names = [*COLUMNS, "Assoc(USF)"]
    lines = [names, *([*row, "1.0"] for row in rows)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return str(path)


def test_words_are_compared_by_kind(tmp_path):
    rows = [  # cosines of `perfect`, by shared words: 1, 0, 0.5, 0
        ("red left", "red left", "A", "9.0", "1", "1"),
        ("red left", "blue right", "A", "1.0", "2", "1"),
        ("red left", "red right", "N", "8.0", "3", "0"),
        ("blue top", "red left", "N", "2.0", "4", "1"),
    ]
    path = write_simlex(tmp_path / "SimLex-999.txt", rows)
    fields = {"kind": "word_similarity", "path": path}
    with pytest.raises(InputError, match="has 4 pairs; wanted 999"):
        make_evaluators({"words": fields})
    evaluators = make_evaluators({"words": fields | {"expected_pairs": 4}})
    scores = dict(run_evaluators(evaluators, FixedEncoder(perfect, perfect)))
    expected = scipy.stats.spearmanr([9, 1, 8, 2], [1, 0, 0.5, 0]).statistic
    assert scores["eval/words/all_spearman"] == pytest.approx(expected)
    assert scores["eval/words/adjectives_spearman"] == pytest.approx(1)
    assert scores["eval/words/nouns_spearman"] == pytest.approx(1)
    assert scores["eval/words/verbs_pairs"] == 0 == scores["eval/words/verbs_spearman"]
    assert scores["eval/words/hard_pairs"] == 3
    with pytest.raises(InputError, match="no SimLex-999 at nowhere; take SimLex"):
        make_evaluators({"words": fields | {"path": "nowhere"}})
    (tmp_path / "bad.txt").write_text("word1\tword2\n")
    with pytest.raises(InputError, match="lacks the columns .*'POS'"):
        make_evaluators({"words": fields | {"path": str(tmp_path / "bad.txt")}})


def test_an_unknown_evaluator_or_field_is_refused():
    with pytest.raises(
        InputError, match="evaluators.a.kind is 'zeroshot'; did you mean"
    ):
        make_evaluators({"a": {"kind": "zeroshot"}})
    with pytest.raises(InputError, match="evaluators.a has no field 'splt'"):
        make_evaluators({"a": {"kind": "retrieval", "splt": "test"}})
    with pytest.raises(InputError, match="evaluators.a lacks the field 'kind'"):
        make_evaluators({"a": {}})


@pytest.mark.parametrize("name", zero_shot.EVALUATIONS)
def test_shipped_evaluations_name_what_is_missing_and_where(name, tmp_path):
    config = zero_shot.get_config(name).to_dict()["evaluators"]
    for field in ("directory", "path"):
        if field in config[name]:
            config[name][field] = str(tmp_path / "absent")
    with pytest.raises(InputError, match=f"{tmp_path}/absent.*(prepare|take)"):
        make_evaluators(config)


def test_evaluations_are_chosen_by_name():
    assert {*zero_shot.get_config("coco,imagenet").evaluators} == {"coco", "imagenet"}
    assert {*zero_shot.get_config().evaluators} == {*zero_shot.EVALUATIONS}
    with pytest.raises(ValueError, match="no evaluation 'coca'; known: imagenet"):
        zero_shot.get_config("coca")


def test_published_numbers_are_of_measures_that_there_are():
    measures = PUBLISHED["measures"]
    recalls = [f"flickr30k/{way}_recall@{k}" for way in ("i2t", "t2i") for k in CUTS]
    mean = np.mean([measures[name][0] for name in recalls])
    assert round(mean, 1) == measures["flickr30k/mean_recall"][0] == 92.2
    for name, values in measures.items():
        evaluation, _, score = name.partition("/")
        assert evaluation in zero_shot.EVALUATIONS
        assert SCORES.search(score)
        assert len(values) == len(PUBLISHED["columns"])
