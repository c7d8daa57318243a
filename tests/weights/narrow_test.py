import dataclasses
import sys

import numpy as np
import pytest

import align_jax
from align_jax import convert
from align_jax.embed import __main__ as embed
from align_jax.embed.prefix import PrefixEncoder
from align_jax.errors import InputError, run_command
from align_jax.evaluate import evaluate
from align_jax.evaluation.runner import (
    fill_evaluators,
    make_evaluators,
    run_evaluators,
)
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import variable_shapes
from align_jax.search import __main__ as search
from align_jax.search.vector_index import open_index
from align_jax.training.training_runs import read_run_config
from align_jax.weights.folder import digest, read_weights, write_weights
from align_jax.weights.narrow import narrow
from align_jax.weights.source import open_weights
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect

PICTURES = [tiny.draw(name, 40) for name in tiny.NAMES]
WIDTH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("narrow")


@pytest.fixture(scope="module")
def sources(folder):
    """Folders of a model with and without a projection of the pictures."""
    plain = tiny.write_model(folder / "plain")
    weights = open_weights(plain)
    config = dataclasses.replace(weights.config, embedding_size=40)
    random = np.random.default_rng(0)
    variables = {
        path: weights.variables[path]
        if path[1] in ("image_tower", "text_tower")
        else random.normal(size=shape).astype(np.float32)
        for path, shape in variable_shapes(config).items()
    }
    variables["params", "temperature"] = np.float32(0.5)
    projected = dataclasses.replace(weights, config=config, variables=variables)
    write_weights(projected, str(folder / "projected"))
    return {"plain": plain, "projected": str(folder / "projected")}


@pytest.mark.parametrize("name", ["plain", "projected"])
def test_embeddings_are_the_prefixes_of_the_whole_ones(sources, name, tmp_path):
    source = sources[name]
    whole = align_jax.load(source, batch_size=8)
    cut = align_jax.load(source, batch_size=8, width=WIDTH)
    prefix = PrefixEncoder(whole.embedder, WIDTH)
    assert cut.width == WIDTH < whole.width
    for method, inputs in (
        ("encode_images", PICTURES),
        ("encode_texts", tiny.NAMES),
        ("project_texts", tiny.NAMES),
    ):
        rows = getattr(whole.embedder, method)(inputs)[:, :WIDTH]
        if method != "project_texts":
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for encoder in (cut.embedder, prefix):
            found = getattr(encoder, method)(inputs)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, rows, rtol=1e-5, atol=1e-6)
    streamed = np.concatenate([*prefix.stream_images(PICTURES)])
    np.testing.assert_array_equal(streamed, prefix.encode_images(PICTURES))
    for method, inputs in (
        ("image_features", PICTURES),
        ("text_features", tiny.NAMES),
    ):
        expected = getattr(whole.embedder, method)(inputs)
        np.testing.assert_array_equal(getattr(prefix, method)(inputs), expected)
    assert cut.temperature == whole.temperature
    # The cut model can be stored.
    assert digest(cut.weights) != digest(whole.weights)
    write_weights(cut.weights, str(tmp_path / "cut"))
    stored = read_weights(str(tmp_path / "cut"))
    assert digest(stored) == digest(cut.weights)
    assert narrow(stored, 8).config.width == 8


def test_the_whole_width_is_the_model_itself(sources):
    weights = open_weights(sources["plain"])
    for width in (None, weights.config.width):
        assert narrow(weights, width) is weights


@pytest.mark.parametrize("width", [-1, 0, 41])
def test_a_width_that_the_model_does_not_have_is_refused(sources, width):
    message = f"width is {width}; the model's embeddings have 40 numbers"
    with pytest.raises(InputError, match=message):
        align_jax.load(sources["projected"], width=width)
    encoder = PrefixEncoder(FixedEncoder(perfect, perfect), 41)
    for encode in (encoder.encode_texts, encoder.project_texts):
        with pytest.raises(InputError, match=r"width is 41, but .* have 7 numbers"):
            encode(["red left"])


@pytest.mark.parametrize("width", [True, 8.0, "8", [8]])
def test_a_width_is_a_whole_number(sources, width):
    weights = open_weights(sources["plain"])
    with pytest.raises(InputError, match=r"width is .*; wanted a whole number"):
        narrow(weights, width)
    assert narrow(weights, np.int64(8)).config.width == 8


def test_an_evaluation_of_too_wide_a_prefix_writes_nothing(sources, tmp_path):
    data = tiny.write_evaluation(tmp_path / "data")
    pairs = {"kind": "retrieval", "directory": data, "split": "test", "width": 41}
    fields = {"run": "evaluate", "checkpoint": sources["projected"]}
    message = "config.evaluators.pairs.width is 41, but embeddings have 40 numbers"
    with pytest.raises(InputError, match=message):
        evaluate(fields | {"evaluators": {"pairs": pairs}}, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_only_dual_encoders_are_cut_and_a_prefix_needs_no_projection(sources):
    weights = open_weights(sources["plain"])
    tower = dataclasses.replace(weights, kind="image_tower")
    with pytest.raises(InputError, match="one image_tower has no embeddings to cut"):
        narrow(tower, 4)
    towers = weights.config.image_tower, weights.config.text_tower
    for fields in ({"embedding_prefix": 81}, {"embedding_size": 4}):
        fields = {"embedding_prefix": 3} | fields
        with pytest.raises(ValueError, match="wanted at most the image tower's 80"):
            ModelConfig(*towers, **fields)


def test_the_commands_take_a_width(sources, tmp_path, monkeypatch, capsys):
    def tell(command, *flags):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, flags)])
        command.main()
        return capsys.readouterr().out

    source = sources["projected"]
    target = tmp_path / "converted"
    tell(convert, "--from", source, "--to", target, f"--width={WIDTH}")
    assert open_weights(str(target)).config.width == WIDTH
    told = tell(embed, f"--model={source}", "--check", f"--width={WIDTH}")
    assert told == f"{source}: embeddings of {WIDTH} numbers\n"

    pictures, place = tmp_path / "pictures", tmp_path / "index"
    pictures.mkdir()
    for name in tiny.NAMES[:3]:
        (pictures / f"{name}.png").write_bytes(tiny.draw(name, 40))
    flags = (f"--checkpoint={source}", f"--images={pictures}", f"--out={place}")
    tell(search, "build", *flags, f"--width={WIDTH}")
    assert open_index(str(place)).description.width == WIDTH
    query = pictures / f"{tiny.NAMES[1]}.png"
    told = tell(search, "query", place, f"--image={query}", "--limit=1")
    assert told == f"1.0000  {query.name}  {query}\n"
    # Another width is another model, which one index cannot hold beside the first.
    monkeypatch.setattr(sys, "argv", ["search", "build", *flags])
    assert run_command("align_jax.search", search.main) == 2


def test_a_cut_model_is_no_align_model_of_hugging_face(
    sources, tmp_path, monkeypatch, capsys
):
    flags = ["--from", sources["plain"], "--to", str(tmp_path / "out")]
    monkeypatch.setattr(
        sys, "argv", ["convert", *flags, "--format=huggingface", "--width=9"]
    )
    assert run_command("align_jax.convert", convert.main) == 2
    assert "and embeddings of 9 numbers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_evaluator_scores_the_prefix_that_its_width_names(tmp_path):
    """The first three numbers of `perfect` are the colour; the others the side."""
    directory = tiny.write_evaluation(tmp_path / "test")
    fields = {"kind": "retrieval", "directory": directory, "split": "test"}
    colours = {
        "kind": "zero_shot",
        "directory": directory,
        "split": "test",
        "prompts": f"{directory}/prompts.json",
    }
    described = {
        "pairs": fields,
        "pairs_3": fields | {"width": 3},
        "pairs_7": fields | {"width": 7},
        "colour_3": colours | {"width": 3},
    }
    evaluators = make_evaluators(described)
    encoder = FixedEncoder(perfect, perfect)
    scores = dict(run_evaluators(evaluators, encoder))
    assert scores["eval/pairs/mean_recall"] == 1.0
    assert scores["eval/pairs_7/mean_recall"] == 1.0
    assert scores["eval/colour_3/top1"] == 1.0
    # Every picture of a colour is as near as the right one, and ties count as wrong.
    assert scores["eval/pairs_3/i2t_recall@1"] == 0.0
    examples = evaluators["pairs_3"].examples(encoder)
    assert examples.keys() == evaluators["pairs"].examples(encoder).keys()
    images, texts, _ = evaluators["pairs_3"].matched_pairs(encoder)
    assert images.shape[1] == texts.shape[1] == 3
    filled = fill_evaluators(described)
    assert filled["pairs_3"]["width"] == 3
    assert "width" not in filled["pairs"]
    assert fill_evaluators(filled) == filled
    for width, message in ((0, "wanted 1 or more"), ("3", "wanted int")):
        with pytest.raises(InputError, match=rf"evaluators.a.width is .*{message}"):
            make_evaluators({"a": fields | {"width": width}})


def test_a_run_knows_its_widths_before_it_starts(tmp_path):
    fields = tiny.make_run(tmp_path)
    loss, full = fields["loss"], 80

    def read(widths, width, **more):
        evaluators = fields["evaluators"]
        pairs = evaluators["pairs"] | {"width": width}
        return read_run_config(
            fields
            | {"loss": loss | {"widths": widths} | more}
            | {"evaluators": evaluators | {"narrow": pairs}}
        )

    assert read((full, 8), 8).loss.widths == (full, 8)
    for widths, width, message, more in (
        ((8, 4), 4, "but embeddings have 80 numbers; wanted these first", {}),
        ((full, 8), 81, "evaluators.narrow.width is 81, but embeddings have 80", {}),
        ((8, full), 4, "wanted each width once, from the largest down", {}),
        ((full, 8, 8), 4, "wanted each width once", {}),
        ((full, 8), 4, "has 1 weights and .* 2 widths", {"width_weights": (1.0,)}),
        ((full, 8), 4, "nested embeddings want 'softmax'", {"kind": "sigmoid"}),
    ):
        with pytest.raises(InputError, match=message):
            read(widths, width, **more)
