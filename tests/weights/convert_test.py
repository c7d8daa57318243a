import dataclasses
import gzip
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from align_jax import convert
from align_jax.errors import InputError, run_command
from align_jax.texts import NONE
from align_jax.weights.folder import read_weights, write_weights
from align_jax.weights.huggingface_folder import (
    IMAGE_PROCESSOR,
    read_align,
    read_bert,
    write_align,
)
from align_jax.weights.source import open_weights
from tests.golden import align_arrays
from tests.weights import outputs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/align.json.gz"
MODELS = json.loads(gzip.decompress(GOLDEN.read_bytes()))
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]


def write_huggingface(folder: pathlib.Path, name: str) -> str:
    """Writes a golden model's folder as transformers 5 does."""
    golden = MODELS[name]
    folder.mkdir()
    arrays = {
        tensor: align_arrays.weight(tensor, tuple(shape), golden["gain"])
        for tensor, shape in golden["shapes"].items()
    }
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    size = golden["size"]
    sides = {
        "size": {"height": size + 10, "width": size + 10},
        "crop_size": {"height": size, "width": size},
    }
    processor = {"image_processor": IMAGE_PROCESSOR | sides | {"resample": 2}}
    files = {
        "config.json": golden["config"],
        "processor_config.json": processor,
        "tokenizer_config.json": {"model_max_length": 8},
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return pathlib.Path(write_huggingface(tmp_path / "odd", "odd"))


def edit(path: pathlib.Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_hugging_faces(name, tmp_path):
    golden = MODELS[name]
    weights = read_align(write_huggingface(tmp_path / name, name))
    # Scanning the blocks of a stage cuts the compile time of B7 to a third.
    tower = dataclasses.replace(weights.config.image_tower, scan=True)
    config = dataclasses.replace(weights.config, image_tower=tower)
    weights = dataclasses.replace(weights, config=config)
    pixels = align_arrays.pixels(golden["size"])
    found = outputs.compute(weights, pixels, align_arrays.TOKENS)
    outputs.assert_close(found, [golden[name] for name in outputs.NAMES])
    assert np.abs(np.array(golden["logits"])).max() > 0.1
    # Pictures have embeddings that differ by more than the tolerance.
    assert np.std(golden["image"], axis=0).max() > 5e-3


@pytest.mark.parametrize("name", ["odd", "square"])
def test_a_round_trip_gives_the_same_bits_and_names(name, tmp_path):
    source = write_huggingface(tmp_path / name, name)
    ours, back = str(tmp_path / "ours"), tmp_path / "back"
    write_weights(open_weights(source), ours)
    write_align(open_weights(ours), str(back))
    before, after = tensors_of(pathlib.Path(source)), tensors_of(back)
    assert before.keys() == after.keys()
    for tensor, array in before.items():
        assert array.dtype == after[tensor].dtype
        np.testing.assert_array_equal(array, after[tensor], strict=True)
    described = json.loads((back / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        expected = MODELS[name]["config"][part]
        kept = {key: described[part][key] for key in expected if key in described[part]}
        kept.pop("hidden_dim", None)  # no effect if it covers the last grid
        assert len(kept) > 10
        assert {k: v for k, v in kept.items() if v != expected[k]} == {}
    assert (back / "vocab.txt").read_text().splitlines() == TOKENS
    again = open_weights(str(back))
    assert again.config == open_weights(source).config
    assert again.preprocess == open_weights(source).preprocess


def test_our_folder_comes_back_as_it_went(folder, tmp_path):
    weights = read_align(str(folder))
    write_weights(weights, str(tmp_path / "ours"))
    again = read_weights(str(tmp_path / "ours"))
    assert again.config == weights.config
    assert again.preprocess == weights.preprocess
    assert again.tokenizer.tokens == weights.tokenizer.tokens == tuple(TOKENS)
    assert again.tokenizer.normalisation == weights.tokenizer.normalisation == NONE
    for mine, other in (
        (again.variables, weights.variables),
        (again.unused, weights.unused),
    ):
        assert mine.keys() == other.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], other[key], strict=True)


def test_our_folder_that_is_not_whole_is_refused(folder, tmp_path):
    ours = tmp_path / "ours"
    write_weights(read_align(str(folder)), str(ours))
    whole = (ours / "weights.safetensors").read_bytes()
    (ours / "weights.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"weights\.safetensors cannot be read: "):
        read_weights(str(ours))
    (ours / "weights.safetensors").write_bytes(whole)
    (ours / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no vocabulary at .*vocabulary\.txt"):
        read_weights(str(ours))
    edit(ours / "model.json", config={})
    with pytest.raises(InputError, match="config lacks the field 'image_tower'"):
        read_weights(str(ours))


def test_missing_extra_and_misshapen_tensors_are_named_with_their_shapes(folder):
    arrays = tensors_of(folder)
    arrays["text_model.head"] = np.zeros((3, 2), np.float32)
    arrays["text_projection.bias"] = np.zeros(7, np.float32)
    del arrays["temperature"]
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    with pytest.raises(InputError) as caught:
        read_align(str(folder))
    message = str(caught.value)
    assert str(folder / "model.safetensors") in message
    assert "temperature () is missing" in message
    assert "text_model.head (3, 2) is not known" in message
    assert "text_projection.bias is (7,), wanted (80,)" in message


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder):
    (folder / "vocab.txt").write_text("\n".join([*TOKENS, "i"]) + "\n")
    with pytest.raises(InputError, match=r"vocab.txt has 13 tokens, .* has 12 rows"):
        read_align(str(folder))


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"projection_dim": 640}, "projection_dim is 640, but .* is 80"),
        (
            "config.json",
            {"text_config": {"hidden_size": 64, "intermediate_size": 100}},
            "text_config.intermediate_size is 100; ours is 256",
        ),
        (
            "config.json",
            {"vision_config": {"hidden_act": "relu"}},
            "vision_config.hidden_act is relu; ours is swish",
        ),
        ("config.json", {"model_type": "blip"}, "model_type 'blip'; wanted one of"),
        (
            "processor_config.json",
            {"image_processor": IMAGE_PROCESSOR | {"resample": 3}},
            "resample is 3; ours is 2",
        ),
    ],
)
def test_another_network_or_preprocessing_is_refused(folder, file, fields, message):
    edit(folder / file, **fields)
    with pytest.raises(InputError, match=message):
        open_weights(str(folder))


def test_a_folder_or_file_that_is_not_whole_is_refused(folder, tmp_path):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read: "):
        open_weights(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"neither model\.safetensors nor pytorch_model"
    ):
        open_weights(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="is a folder without any: wanted one with"):
        open_weights(str(folder))
    with pytest.raises(InputError, match="is no folder: wanted one with"):
        open_weights(str(tmp_path / "nowhere"))


def test_what_an_align_model_cannot_be_is_not_exported(folder, tmp_path):
    weights = read_align(str(folder))
    same = dataclasses.replace(weights.config.image_tower, padding="same")
    config = dataclasses.replace(weights.config, image_tower=same)
    with pytest.raises(InputError, match="padding 'same' at 65 pixels"):
        write_align(dataclasses.replace(weights, config=config), str(tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_learned_logarithm_goes_out_as_the_temperature_and_a_bias_not_at_all(
    folder, tmp_path
):
    weights = read_align(str(folder))
    variables = dict(weights.variables)
    before = variables.pop(("params", "temperature"))
    variables["params", "log_temperature"] = np.log(before)
    config = dataclasses.replace(weights.config, temperature_form="log")
    logarithm = dataclasses.replace(weights, config=config, variables=variables)
    write_align(logarithm, str(tmp_path / "log"))
    back = read_align(str(tmp_path / "log")).variables["params", "temperature"]
    np.testing.assert_allclose(back, before, rtol=1e-6)
    other = {"logit_bias_init": -10.0, "pixel_std": (0.2, 0.3, 0.4)}
    config = dataclasses.replace(config, **other)
    with pytest.raises(InputError, match="default of logit_bias_init, pixel_std; th"):
        write_align(dataclasses.replace(logarithm, config=config), str(tmp_path / "b"))


def test_checkpoints_in_several_files_are_joined(folder):
    arrays = tensors_of(folder)
    parts = {"a.safetensors": {}, "b.safetensors": {}}
    for index, (name, array) in enumerate(arrays.items()):
        parts[list(parts)[index % 2]][name] = array
    for file, part in parts.items():
        safetensors.numpy.save_file(part, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: f for f, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_align(str(folder)).config.text_tower.layers == 2
    (folder / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"names b\.safetensors, which is missing"):
        read_align(str(folder))


def test_a_bert_with_a_head_gives_the_text_tower(folder, tmp_path):
    bert = tmp_path / "bert"
    bert.mkdir()
    arrays = {
        name.replace("text_model.", "bert.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in tensors_of(folder).items()
        if name.startswith("text_model.")
    }
    arrays["cls.predictions.bias"] = np.zeros(12, np.float32)
    safetensors.numpy.save_file(arrays, bert / "model.safetensors")
    described = MODELS["odd"]["config"]["text_config"] | {"model_type": "bert"}
    (bert / "config.json").write_text(json.dumps(described))
    (bert / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    tower, align = read_bert(str(bert)), read_align(str(folder))
    assert tower.kind == "text_tower"
    assert dataclasses.replace(tower.config, max_tokens=8) == align.config.text_tower
    assert tower.variables.keys() == {
        p for p in align.variables if p[1] == "text_tower"
    }
    for path, array in tower.variables.items():
        np.testing.assert_array_equal(array, align.variables[path])


def test_the_command_converts_or_leaves_nothing(folder, tmp_path, monkeypatch, capsys):
    new = str(tmp_path / "new")
    command = [sys.executable, "-m", "align_jax.convert", "--from", str(folder)]
    done = subprocess.run([*command, "--to", new], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{new}: dual encoder of ")

    # Calls `main` instead of the command, whose imports take seconds.
    def refused(target):
        flags = ["--from", str(folder), "--to", target]
        monkeypatch.setattr(sys, "argv", ["convert", *flags])
        assert run_command("align_jax.convert", convert.main) == 2
        return capsys.readouterr().err.splitlines()[-1]

    wanted = f"align_jax.convert: {new} is there already; give a new folder"
    assert refused(new) == wanted
    (folder / "vocab.txt").unlink()
    other = str(tmp_path / "other")
    assert "has neither vocab.txt nor tokenizer.json" in refused(other)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", folder.name]


def test_written_files_have_the_mode_of_the_umask(folder, tmp_path):
    model = read_align(str(folder))
    before = os.umask(0o022)
    try:
        for umask, write in ((0o022, write_weights), (0o027, write_align)):
            os.umask(umask)
            write(model, str(tmp_path / write.__name__))
            files = [*(tmp_path / write.__name__).iterdir()]
            assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.json", [], "holds a list"),
        ("model.json", {"kind": "dual_encoder"}, "lacks the field 'config'"),
        ("model.json", {"kind": "dual_encoder", "config": 3}, "config is a int"),
        ("model.json", {"kind": [], "config": {}}, "kind is a list; wanted str"),
        ("weights.safetensors", {}, "cannot be read"),
    ],
)
def test_our_folder_with_damaged_files_is_refused(
    folder, tmp_path, file, content, message
):
    write_weights(read_align(str(folder)), str(tmp_path / "ours"))
    (tmp_path / "ours" / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        open_weights(str(tmp_path / "ours"))
