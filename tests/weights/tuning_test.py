"""Runs that start from a folder of CLIP or SigLIP, by the shipped configs."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from align_jax.errors import InputError
from align_jax.input.wordpiece import WordPiece
from align_jax.texts import NONE
from align_jax.train import train
from align_jax.training.training_runs import read_run_config
from align_jax.weights import starts
from align_jax.weights.exports import write_huggingface
from align_jax.weights.initialize import read_initial
from align_jax.weights.source import open_weights
from align_jax.weights.starts import describe_start
from configs import finetune_lit, tune_published
from tests import tiny
from tests.weights.clip_folders import MODELS, write_folder


def write_start(folder: pathlib.Path, name: str) -> str:
    """Writes a golden model's folder with the words of the tiny dataset."""
    source = pathlib.Path(write_folder(folder, name))
    words = (source / "vocab.txt").read_text().split()
    names = [word for word in tiny.WORDS if word not in words][:12]
    free = [i for i, word in enumerate(words) if word.startswith("w")]
    for index, word in zip(free, names, strict=False):
        words[index] = word
    (source / "vocab.txt").write_text("\n".join(words) + "\n")
    return str(source)


def shorten(config, root: pathlib.Path):
    """Returns a shipped config as a run of seconds on the tiny dataset."""
    fields = config.to_dict()
    made = tiny.make_run(root)
    for name in ("virtual_cores", "pairs_per_core", "batch_norm_cores", "checkpoint"):
        fields[name] = made[name]
    fields["input"]["datasets"] = made["input"]["datasets"]
    fields["input"]["streams"] = 4
    fields |= {"total_steps": 4, "log_every_steps": 1, "evaluate_every_steps": 4}
    fields["optimizer"]["warmup_steps"] = 1
    evaluators = {"pairs": made["evaluators"]["pairs"]}
    return fields | {"evaluators": evaluators}


def lines_of(workdir: pathlib.Path) -> list[dict]:
    return [
        json.loads(s) for s in (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    ]


@pytest.mark.parametrize(
    "name", ["clip_small", pytest.param("siglip_small", marks=pytest.mark.pods)]
)
def test_a_tuned_model_starts_as_the_published_one_and_is_exported(name, tmp_path):
    source = write_start(tmp_path / "start", name)
    fields = shorten(tune_published.get_config(source), tmp_path / "data")
    fields["optimizer"]["learning_rate"] = 1e-3
    fields["optimizer"]["frozen"] = ("^image_tower/", "temperature$")
    fields["loss"]["temperature_floor"] = 1e-3
    train(fields, str(tmp_path / "run"))
    rows = [row for row in lines_of(tmp_path / "run") if "train/loss" in row]
    assert len(rows) == 4
    assert all(np.isfinite(row["train/loss"]) for row in rows)
    assert {row["train/temperature"] for row in rows} == {rows[0]["train/temperature"]}
    np.testing.assert_allclose(rows[0]["train/temperature"], np.exp(-2.3), rtol=1e-5)
    assert rows[-1]["train/text_tower/gradient_norm"] > 0
    first = open_weights(source)
    tuned = open_weights(str(tmp_path / "run"))
    assert tuned.config == first.config
    moved = {
        path[1]
        for path, array in tuned.variables.items()
        if not np.array_equal(array, first.variables[path])
    }
    assert "image_tower" not in moved
    assert "log_temperature" not in moved
    assert {"text_tower", "text_projection"} <= moved
    write_huggingface(tuned, str(tmp_path / "back"))
    arrays = safetensors.numpy.load_file(tmp_path / "back/model.safetensors")
    assert arrays.keys() == MODELS[name]["shapes"].keys()
    np.testing.assert_allclose(arrays["logit_scale"], 2.3, rtol=1e-6)
    assert open_weights(str(tmp_path / "back")).config == first.config


@pytest.mark.pods
def test_a_new_text_tower_learns_a_locked_image_tower(tmp_path):
    source = write_start(tmp_path / "start", "clip_small")
    fields = shorten(finetune_lit.get_config(source), tmp_path / "data")
    made = tiny.make_run(tmp_path / "data")
    fields["vocabulary"] = made["vocabulary"]
    fields["model"]["text_tower"] = made["model"]["text_tower"]
    fields["model"]["dtype"] = "float32"
    config = read_run_config(fields)
    assert config.model.width == 32  # of the image tower; CLIP's projection is left out
    assert config.model.pixel_mean == open_weights(source).config.pixel_mean
    train(fields, str(tmp_path / "run"))
    tuned, first = open_weights(str(tmp_path / "run")), open_weights(source)
    own = [path for path in tuned.variables if path[1] == "image_tower"]
    assert len(own) > 30
    for path in own:
        np.testing.assert_array_equal(tuned.variables[path], first.variables[path])
    row = next(r for r in lines_of(tmp_path / "run") if "train/loss" in r)
    assert row["train/image_tower/gradient_norm"] == 0
    assert row["train/text_tower/gradient_norm"] > 0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("text_tower.activation", "gelu", "activation is gelu, but .* with quick_gelu"),
        ("image_tower.norm_epsilon", 1e-6, "norm_epsilon is 1e-06, but .* with 1e-05"),
        ("pixel_mean", (0.5, 0.5, 0.5), r"pixel_mean is \(0.5, .* with \(0.48"),
    ],
)
def test_a_start_that_differs_in_no_shape_is_named(tmp_path, path, value, message):
    source = write_start(tmp_path / "start", "clip_small")
    fields = tune_published.get_config(source).to_dict()
    part, _, name = path.rpartition(".")
    (fields["model"][part] if part else fields["model"])[name] = value
    config = read_run_config(fields)
    with pytest.raises(InputError, match=message):
        read_initial(config, config.make_tokenizer())


def test_a_start_is_named_and_is_a_whole_model(tmp_path):
    for config in (tune_published, finetune_lit):
        with pytest.raises(InputError, match="wants the folder of a model, as in"):
            config.get_config()
    source = pathlib.Path(write_start(tmp_path / "start", "clip_small"))
    tower = MODELS["clip_small"]["config"]["vision_config"]
    (source / "config.json").write_text(json.dumps(tower))
    with pytest.raises(InputError, match="is one image_tower; wanted a complete model"):
        describe_start(str(source))


def test_a_start_whose_file_gives_other_ids_is_refused(tmp_path, monkeypatch):
    source = tiny.write_model(tmp_path / "model")
    weights = open_weights(source)
    other = WordPiece(weights.tokenizer.tokens, 6, normalisation=NONE)
    weights = dataclasses.replace(weights, tokenizer=other)
    monkeypatch.setattr(starts, "open_weights", lambda _: weights)
    with pytest.raises(InputError, match=r"vocabulary\.txt alone gives other ids"):
        describe_start(source)


def test_a_start_from_our_own_folder_has_its_tokenizer(tmp_path):
    source = tiny.write_model(tmp_path / "model")
    start = describe_start(source)
    assert start.vocabulary == f"{source}/vocabulary.txt"
    weights = open_weights(source)
    assert start.model == dataclasses.asdict(weights.config)
    assert start.preprocess == dataclasses.asdict(weights.preprocess)
