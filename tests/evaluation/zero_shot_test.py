import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

import main
from align_jax.embed.embedder import class_embeddings
from align_jax.errors import InputError
from align_jax.evaluation.evaluators.prompts import read_prompts, read_subset
from align_jax.evaluation.evaluators.zero_shot import ZeroShot, ZeroShotConfig
from align_jax.evaluation.runner import make_evaluators
from align_jax.evaluation.scores import CUTS
from align_jax.runs.results import PUBLISHED, is_score
from configs import (
    finetune_fine_grained,
    finetune_imagenet,
    finetune_retrieval,
    vtab,
    zero_shot,
)
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.write_evaluation(tmp_path_factory.mktemp("data") / "test")


def test_class_embeddings_are_means_of_unit_prompts_or_of_plain_ones(directory):
    evaluator = ZeroShot(ZeroShotConfig(directory, "test", f"{directory}/prompts.json"))
    prompts = evaluator.prompts.fill(evaluator.prompts.templates)
    assert prompts[0] == ["red", "red left"]
    encoder = FixedEncoder(perfect, perfect)
    for unit, expected in (
        (True, perfect("red") + perfect("red left")),
        # FixedEncoder scales plain embeddings by the length of the text.
        (False, 3 * perfect("red") + 8 * perfect("red left")),
    ):
        found = class_embeddings(encoder, prompts, unit)
        expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_prompts_that_do_not_fit_the_labels_are_refused(directory, tmp_path):
    path = tmp_path / "prompts.json"
    prompts = {"templates": ["{}"], "categories": [{"name": "red", "prompts": ["red"]}]}
    path.write_text(json.dumps(prompts))
    with pytest.raises(InputError, match=r"describes 1 classes, .* has labels of 3"):
        ZeroShot(ZeroShotConfig(directory, "test", str(path)))
    with pytest.raises(InputError, match="no prompts at nowhere; shipped are cars196"):
        ZeroShot(ZeroShotConfig(directory, "test", "nowhere"))
    path.write_text('{"templates": ["a photo"]}')
    with pytest.raises(InputError, match=r"\['a photo'\]; wanted some with a {}"):
        ZeroShot(ZeroShotConfig(directory, "test", str(path)))


def test_clip_benchmark_s_prompts_of_a_language_are_read(directory, tmp_path):
    names = tmp_path / "it_classnames.json"
    templates = tmp_path / "it_zeroshot_classification_templates.json"
    names.write_text(json.dumps({"imagenet1k": ["rosso", "verde", "blu"]}))
    templates.write_text(json.dumps({"imagenet1k": ["{c}", "una foto di {c}."]}))
    config = ZeroShotConfig(directory, "test", str(names))
    prompts = ZeroShot(config).prompts
    assert prompts.classes == ["rosso", "verde", "blu"]
    assert prompts.fill(prompts.templates)[2] == ["blu", "una foto di blu."]
    for path, content, message in (
        (templates, {"imagenet1k": ["una foto"]}, r"\['una foto'\]; wanted some with"),
        (templates, {"imagenet1k": ["{c} {d}"]}, r"the template '{} {d}'; wanted a se"),
        (templates, {"cars": ["{c}"]}, r"templates.json lacks the field 'imagenet1k'"),
        (names, {"imagenet1k": "rosso"}, r"imagenet1k is a str; wanted list"),
        (names, {"imagenet1k": ["rosso"]}, r"describes 1 classes, .* has labels of 3"),
    ):
        before = path.read_text()
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            ZeroShot(config)
        path.write_text(before)
    templates.unlink()
    with pytest.raises(InputError, match=r"classification_templates.json is missing"):
        ZeroShot(config)


def test_shipped_prompts_have_their_published_counts():
    names = [str(i) for i in range(1000)]
    imagenet = read_prompts("imagenet", names)
    assert len(imagenet.templates) == 80
    assert len(imagenet.classes) == 1000
    assert len(set(imagenet.classes)) == 998
    assert imagenet.fill(imagenet.templates)[0][0] == "a bad photo of a tench."
    for name in ("imagenet_a", "imagenet_r"):
        labels = read_subset(name)
        assert len(labels) == 200
        assert labels == sorted(set(labels))
        assert 0 <= labels[0]
        assert labels[-1] < 1000
    counts = {
        "cars196": 8,
        "cifar": 18,
        "food101": 1,
        "oxford_iiit_pet": 1,
    }
    for name, count in counts.items():
        prompts = read_prompts(name, ["maple_tree", "x"])
        assert prompts.classes == ["maple tree", "x"]
        assert len(set(prompts.templates)) == len(prompts.templates) == count


def test_flowers_have_clip_s_names_in_the_order_of_the_labels():
    # TFDS names these three labels "globe-flower", "pink-yellow dahlia?", "ball moss".
    flowers = read_prompts("oxford_flowers102", [str(i) for i in range(102)])
    named = {0: "pink primrose", 15: "globe flower", 59: "pink and yellow dahlia"}
    named |= {11: "colt's foot", 92: "air plant", 101: "blackberry lily"}
    assert {i: flowers.classes[i] for i in named} == named
    assert len({*flowers.classes}) == 102
    assert flowers.fill(flowers.templates)[92] == [
        "a photo of a air plant, a type of flower."
    ]


def label(name):
    """Returns the label of a tiny drawing among 1,000 classes."""
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
        "align_jax.evaluation.evaluators.zero_shot.read_subset",
        lambda name: [2, 313, 314, 900],
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
    assert some["prompts"] == 4
    every = dict(ZeroShot(ZeroShotConfig(directory, "test", prompts)).run(encoder))
    assert (every["top1"], every["top5"], every["candidates"]) == (0.0, 1.0, 1000)
    monkeypatch.setattr(
        "align_jax.evaluation.evaluators.zero_shot.read_subset", lambda name: [2, 313]
    )
    with pytest.raises(InputError, match="label 314, which is none of the 2 classes"):
        dict(ZeroShot(ZeroShotConfig(directory, "test", prompts, "a")).run(encoder))


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


@pytest.mark.parametrize("name", zero_shot.BEYOND)
def test_sets_beyond_the_paper_are_chosen_by_name_alone(name, tmp_path):
    assert name not in zero_shot.get_config().evaluators
    config = zero_shot.get_config(name).to_dict()["evaluators"]
    config[name]["directory"] = str(tmp_path / "absent")
    with pytest.raises(InputError, match=f"{tmp_path}/absent"):
        make_evaluators(config)


def test_published_numbers_are_of_measures_that_there_are():
    measures = PUBLISHED["measures"]
    recalls = [f"flickr30k/{way}_recall@{k}" for way in ("i2t", "t2i") for k in CUTS]
    mean = np.mean([measures[name][0] for name in recalls])
    assert round(mean, 1) == measures["flickr30k/mean_recall"][0] == 92.2
    transfer = [
        *(finetune_imagenet.get_config(stage) for stage in finetune_imagenet.STAGES),
        *(finetune_retrieval.get_config(n) for n in finetune_retrieval.DATASETS),
        *(
            finetune_fine_grained.get_config(f"{name},all")
            for name in finetune_fine_grained.DATASETS
        ),
    ]
    evaluations = {*zero_shot.EVALUATIONS}.union(*(c.evaluators for c in transfer))
    evaluations |= {*vtab.get_config().groups}
    for name, values in measures.items():
        evaluation = name.partition("/")[0]
        assert evaluation in evaluations
        assert is_score(f"eval/{name}")
        assert len(values) == len(PUBLISHED["columns"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coca", "no evaluation 'coca'; known: imagenet"),
        ("coco", "checkpoint is empty"),
    ],
)
def test_the_command_line_names_what_is_missing(name, message, tmp_path):
    flags = [f"--config=configs/zero_shot.py:{name}", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(InputError, match=message) as error:
        main.run(["main.py", *flags])
    assert "Traceback" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_under_attack_a_reader_of_words_chooses_the_word(directory, monkeypatch):
    written = []

    def note(picture, word, random):
        written.append((picture, word, random.random()))
        return word.encode()

    monkeypatch.setattr("align_jax.evaluation.evaluators.zero_shot.write_word", note)
    fields = {"kind": "zero_shot", "directory": directory, "split": "test"}
    fields |= {"prompts": f"{directory}/prompts.json", "attack": True}

    def run(share, **more):
        """Evaluates an encoder that reads a share of the words, the first ones."""
        encoder = FixedEncoder(perfect, perfect)
        shown = iter(range(12))
        stream = encoder.stream_images

        def read(pictures):
            for picture in pictures:
                if picture in encoder.names:
                    yield from stream([picture])
                else:
                    reads = next(shown) < 12 * share
                    name = picture.decode() if reads else encoder.names[written[-1][0]]
                    yield np.float32([perfect(name)])

        encoder.stream_images = read
        described = {"set": fields | more}
        return dict(make_evaluators(described)["set"].run(encoder))

    found = run(1)
    assert found["top1"] == 1
    assert found["attacked_top1"] == 0
    assert found["attack_loss"] == found["attack_success"] == 1
    first, written[:] = list(written), []
    names = {tiny.draw(n, 110): n for n in tiny.NAMES}
    assert [names[picture] for picture, _, _ in first] == tiny.NAMES
    assert all(word not in names[picture] for picture, word, _ in first)
    assert len({word for _, word, _ in first}) > 1
    found = run(0.25)
    assert found["attacked_top1"] == 0.75
    assert found["attack_success"] == found["attack_loss"] == 0.25
    assert written == first  # of the same seed
    written.clear()
    run(0, attack_seed=1)
    assert written != first


def test_an_attack_needs_two_names(directory, tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"templates": ["{}"], "classes": ["red"] * 3}))
    config = ZeroShotConfig(directory, "test", str(path), attack=True)
    with pytest.raises(InputError, match="has the one class name 'red'; an attack nee"):
        ZeroShot(config)
