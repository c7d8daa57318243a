"""Folders of CLIP and SigLIP, beside the results of transformers in golden/."""

import dataclasses
import gzip
import json
import pathlib
from functools import partial

import jax
import numpy as np
import pytest
import safetensors.numpy

from align_jax.embed.model import Model
from align_jax.errors import InputError
from align_jax.models.parameters import unflatten
from align_jax.report.model_card import make_card
from align_jax.weights.clip_folder import write_clip, write_open_clip
from align_jax.weights.exports import write_huggingface
from align_jax.weights.folder import digest, read_weights, write_weights
from align_jax.weights.source import open_weights
from tests.golden import clip_arrays
from tests.weights import outputs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/clip.json.gz"
MODELS = json.loads(gzip.decompress(GOLDEN.read_bytes()))
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def vocabulary(size: int, end: int) -> list[str]:
    """Makes a vocabulary of WordPiece whose texts end with the id `end`."""
    words = ["[PAD]", *(f"w{i}" for i in range(1, size))]
    words[size // 2], words[size // 2 + 1] = "[UNK]", "[CLS]"
    words[end] = "[SEP]"
    return words


def processor(name: str) -> dict:
    """Returns a preprocessor_config.json as CLIP's or SigLIP's."""
    size = MODELS[name]["size"]
    square = {"height": size, "width": size}
    shared = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    if name.startswith("clip"):
        return shared | {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": size},
            "do_center_crop": True,
            "crop_size": square,
            "resample": 3,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        }
    return shared | {
        "image_processor_type": "SiglipImageProcessor",
        "size": square,
        "resample": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def write_folder(folder: pathlib.Path, name: str) -> str:
    """Writes a golden model's folder as transformers does; returns its path."""
    golden = MODELS[name]
    folder.mkdir()
    arrays = {
        tensor: clip_arrays.weight(tensor, tuple(shape))
        for tensor, shape in golden["shapes"].items()
    }
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    files = {
        "config.json": golden["config"],
        "preprocessor_config.json": processor(name),
        "tokenizer_config.json": {"model_max_length": 10**30},
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    words = vocabulary(golden["config"]["text_config"]["vocab_size"], golden["end"])
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return str(folder)


def edit(path: pathlib.Path, part: str | None = None, **fields) -> None:
    """Sets fields of a JSON file, or of one of its parts."""
    described = json.loads(path.read_text())
    (described if part is None else described[part]).update(fields)
    path.write_text(json.dumps(described))


def tensors_of(folder: pathlib.Path, file: str = "model.safetensors") -> dict:
    return safetensors.numpy.load_file(folder / file)


def assert_same(before: dict, after: dict) -> None:
    """Checks that tensors have the same names, types and bits."""
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype
        np.testing.assert_array_equal(array, after[name], strict=True)


@pytest.fixture
def folder(tmp_path):
    return pathlib.Path(write_folder(tmp_path / "clip", "clip_small"))


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_and_logits_are_transformers(name, tmp_path):
    golden = MODELS[name]
    weights = open_weights(write_folder(tmp_path / name, name))
    rows = golden["config"]["text_config"]["vocab_size"]
    ids = clip_arrays.tokens(rows, golden["length"], golden["end"], golden["pad"])
    pixels = clip_arrays.pixels(golden["size"])
    outputs.assert_golden(outputs.compute(weights, pixels, ids), golden)


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_gives_the_same_bits_and_fields(name, tmp_path):
    source = pathlib.Path(write_folder(tmp_path / name, name))
    ours, back = str(tmp_path / "ours"), tmp_path / "back"
    write_weights(open_weights(str(source)), ours)
    kind = MODELS[name]["config"]["model_type"]
    if kind == "siglip2":
        write_clip(open_weights(ours), str(back), kind=kind)
    else:
        write_huggingface(open_weights(ours), str(back))
    assert_same(tensors_of(source), tensors_of(back))
    described = json.loads((back / "config.json").read_text())
    wanted = MODELS[name]["config"]
    assert described["architectures"] == [f"{type_of(name)}Model"]
    for part in ("text_config", "vision_config"):
        kept = {k: v for k, v in described[part].items() if k in wanted[part]}
        assert len(kept) >= 9
        # The ids are the tokenizer's, and a part's projection_dim has no effect.
        for field in ("pad_token_id", "eos_token_id", "projection_dim"):
            kept.pop(field, None)
        assert {k: v for k, v in kept.items() if v != wanted[part][k]} == {}
    pictures = json.loads((back / "preprocessor_config.json").read_text())
    given = processor(name)
    assert {k: v for k, v in pictures.items() if given.get(k, v) != v} == {}
    again, first = open_weights(str(back)), open_weights(str(source))
    assert again.config == first.config
    assert again.preprocess == first.preprocess
    assert digest(again) == digest(first)


def type_of(name: str) -> str:
    kind = name.split("_")[0]
    return {"clip": "CLIP"}.get(kind, kind.capitalize())


def test_our_folder_comes_back_as_it_went(folder, tmp_path):
    arrays = tensors_of(folder)
    places = np.arange(8)[None]
    arrays["text_model.embeddings.position_ids"] = places
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    weights = open_weights(str(folder))
    write_weights(weights, str(tmp_path / "ours"))
    again = read_weights(str(tmp_path / "ours"))
    assert again.config == weights.config
    assert again.config.pixel_mean == tuple(CLIP_MEAN)
    assert again.preprocess == weights.preprocess
    assert again.preprocess.evaluation_resize == "shortest"
    assert again.preprocess.resampling == "bicubic"
    write_huggingface(again, str(tmp_path / "back"))
    assert_same(arrays, tensors_of(tmp_path / "back"))


def test_pictures_and_texts_go_through_the_folder_s_processors(folder, tmp_path):
    """Pictures are resized, cropped and scaled, texts tokenized, as the files say."""
    from PIL import Image

    draw = np.random.default_rng(0)
    small = draw.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((70, 50), Image.Resampling.BICUBIC)
    weights = open_weights(str(folder))
    model = Model(weights, batch_size=1)
    shorter = picture.resize((int(32 * 70 / 50), 32), Image.Resampling.BICUBIC)
    levels = np.asarray(shorter)[:, 6:38] / np.float32(255)
    scaled = (levels - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    ids = [[21, 3, 5, 39, 0, 0, 0, 0]]

    def encode(method, array):
        module, variables = weights.config.build(), unflatten(weights.variables)
        apply = jax.jit(partial(module.apply, method=method))
        return apply(variables, array)

    expected = encode("encode_images", scaled[None].astype(np.float32))
    found = model.encode_images([picture])
    assert (found * expected).sum() > 0.99999
    other = encode("encode_images", (2 * levels - 1)[None].astype(np.float32))
    assert (found * other).sum() < 0.999
    np.testing.assert_allclose(
        model.encode_texts(["w3 W5"]),
        encode("encode_texts", np.array(ids, np.int32)),
        atol=1e-5,
    )


@pytest.mark.parametrize("part", ["vision", "text"])
@pytest.mark.parametrize("prefixed", [True, False])
def test_a_folder_of_one_tower_gives_that_tower(folder, tmp_path, part, prefixed):
    single, prefix = tmp_path / "single", f"{part}_model."
    single.mkdir()
    for path in folder.iterdir():
        (single / path.name).write_bytes(path.read_bytes())
    config = MODELS["clip_small"]["config"][f"{part}_config"]
    (single / "config.json").write_text(json.dumps(config))
    arrays = {
        name if prefixed else name.removeprefix(prefix): array
        for name, array in tensors_of(folder).items()
        if name.startswith(prefix)
    }
    arrays["visual_projection.weight"] = np.zeros((20, 32), np.float32)
    safetensors.numpy.save_file(arrays, single / "model.safetensors")
    tower, whole = open_weights(str(single)), open_weights(str(folder))
    name = "image_tower" if part == "vision" else "text_tower"
    assert tower.kind == name
    assert tower.config == getattr(whole.config, name)
    assert {p for p in whole.variables if p[1] == name} == {*tower.variables}
    for path, array in tower.variables.items():
        np.testing.assert_array_equal(array, whole.variables[path])


def test_early_files_of_clip_are_read(folder):
    """They have numbers as sizes, fields twice, and no names of classes."""
    described = json.loads((folder / "config.json").read_text())
    for part in ("text", "vision"):
        full = described[f"{part}_config"]
        described[f"{part}_config_dict"] = full
        described[f"{part}_config"] = full | {"num_hidden_layers": 7}
    expected = open_weights(str(folder))
    (folder / "config.json").write_text(json.dumps(described))
    early = {
        "crop_size": 32,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
        "size": 32,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(early))
    found = open_weights(str(folder))
    assert found.config == expected.config
    assert found.preprocess == expected.preprocess


@pytest.mark.parametrize(
    ("name", "part", "fields", "message"),
    [
        ("clip_small", "text_config", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("clip_small", "text_config", {"hidden_size": 33}, "width is 33; it must be"),
        ("clip_small", "text_config", {"dropout": 0.1}, "dropout is 0.1; ours is 0.0"),
        ("clip_small", "text_config", {"eos_token_id": 5}, "end_token 39, but .* is 5"),
        (
            "clip_small",
            "text_config",
            {"eos_token_id": [5]},
            "eos_token_id is .5. .lis",
        ),
        ("clip_small", "vision_config", {"num_channels": 4}, "num_channels is 4; ours"),
        (
            "clip_small",
            "vision_config",
            {"image_size": [4, 4]},
            r"image_size is \[4, 4",
        ),
        (
            "clip_small",
            "vision_config",
            {"image_size": 7},
            "image_size is 7; wanted at",
        ),
        ("clip_small", "vision_config", {"image_size": 40}, "positions for 5"),
        (
            "clip_small",
            "vision_config",
            {"attention_dropout": 0.5},
            "attention_dropout is 0.5; ours is 0.0",
        ),
        ("clip_small", None, {"vision_config": 3}, "vision_config is 3; wanted a dict"),
        ("clip_small", None, {"projection_dim": 0}, "embedding_size is 0; wanted 1"),
        (
            "clip_small",
            None,
            {"projection_dim": 21},
            "visual_projection.*wanted .21, 32",
        ),
        ("clip_small", None, {"logit_scale_init_value": "x"}, "logit_scale_init_value"),
        (
            "clip_small",
            None,
            {"quantization_config": {"bits": 4}},
            r"quantization_config is \{'bits': 4\}; ours is None",
        ),
        (
            "siglip_small",
            "vision_config",
            {"vision_use_head": False},
            "vision_use_head is False; ours is True",
        ),
        (
            "siglip_small",
            "text_config",
            {"projection_size": 30},
            "projection_size is 30; wanted 32, the width of the image tower",
        ),
        (
            "siglip2_small",
            "vision_config",
            {"num_patches": 15},
            "num_patches is 15; wanted a square number",
        ),
    ],
)
def test_another_network_is_refused_by_the_field_s_name(
    tmp_path, name, part, fields, message
):
    folder = pathlib.Path(write_folder(tmp_path / name, name))
    edit(folder / "config.json", part, **fields)
    with pytest.raises(InputError, match=message):
        open_weights(str(folder))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("clip_small", {"do_resize": False}, "do_resize is False; wanted True"),
        ("clip_small", {"do_rescale": "yes"}, "do_rescale is 'yes'; wanted True"),
        (
            "clip_small",
            {"do_center_crop": False},
            "do_center_crop is False; wanted tru",
        ),
        ("clip_small", {"do_normalize": 1}, "do_normalize is 1; wanted true or false"),
        ("clip_small", {"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
        ("clip_small", {"resample": 1}, "resample is 1; wanted 2 .bilinear. or 3"),
        ("clip_small", {"resample": [3]}, r"resample is \[3\]"),
        ("clip_small", {"size": {"longest_edge": 32}}, "size is .'longest_edge': 32"),
        (
            "clip_small",
            {"size": {"height": 32, "width": 30}},
            "size is .*; wanted a sq",
        ),
        ("clip_small", {"size": "32"}, "size is '32'; wanted a square"),
        ("clip_small", {"size": {"shortest_edge": 30}}, "resize is 30, below .* 32"),
        ("clip_small", {"crop_size": [32, 32]}, r"crop_size is \[32, 32\]; wanted"),
        ("clip_small", {"image_mean": [0.5]}, r"image_mean is \[0.5\]; wanted three"),
        ("clip_small", {"image_mean": [128, 1, 1]}, "image_mean is .*from 0 to 1"),
        ("clip_small", {"image_std": [0, 1, 1]}, "image_std is .*above 0"),
        ("clip_small", {"do_pad": True}, "do_pad is True; wanted False"),
        (
            "clip_small",
            {"image_processor_type": "ViTImageProcessor"},
            "image_processor_type is 'ViTImageProcessor'; wanted one of CLIPImage",
        ),
        (
            "siglip2_small",
            {"image_processor_type": "Siglip2ImageProcessorFast"},
            r"cuts pictures of any shape into patches \(NaFlex\); ours are squares",
        ),
        (
            "siglip_small",
            {"size": {"height": 64, "width": 64}},
            "have 8 patches a side",
        ),
    ],
)
def test_other_preprocessing_is_refused_by_the_field_s_name(
    tmp_path, name, fields, message
):
    folder = pathlib.Path(write_folder(tmp_path / name, name))
    edit(folder / "preprocessor_config.json", **fields)
    with pytest.raises(InputError, match=message):
        open_weights(str(folder))


def test_missing_extra_and_misshapen_tensors_are_named(folder):
    arrays = tensors_of(folder)
    arrays["text_model.head"] = np.zeros((3, 2), np.float32)
    arrays["text_projection.weight"] = np.zeros(7, np.float32)
    del arrays["logit_scale"]
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    with pytest.raises(InputError) as caught:
        open_weights(str(folder))
    message = str(caught.value)
    assert "logit_scale () is missing" in message
    assert "text_model.head (3, 2) is not known" in message
    assert "text_projection.weight is (7,), wanted (20, 32)" in message


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("clip_small", {"image_tower.registers": 4}, "registers = 0; this model has 4"),
        (
            "clip_small",
            {"text_tower.causal": False},
            "causal = True; this model has Fa",
        ),
        ("clip_small", {"logit_bias_init": -1.0}, "logit_bias_init = None; this model"),
        ("clip_small", {"embedding_size": None}, "has model.embedding_size"),
        ("siglip_small", {"logit_bias_init": None}, "has model.logit_bias_init and no"),
        ("siglip_small", {"embedding_prefix": 8}, "no embedding_prefix; this model"),
        ("siglip_small", {"preprocess.resize": 40}, "does not crop them; this model"),
        ("clip_small", {"image_tower.position_grid": 5}, "position_grid is 5; a CLIPM"),
    ],
)
def test_what_no_such_model_can_be_is_not_exported(tmp_path, name, change, message):
    weights = open_weights(write_folder(tmp_path / name, name))
    ((path, value),) = change.items()
    part, _, field = path.rpartition(".")
    config, preprocess = weights.config, weights.preprocess
    if part == "preprocess":
        preprocess = dataclasses.replace(preprocess, **{field: value})
    elif part:
        tower = dataclasses.replace(getattr(config, part), **{field: value})
        config = dataclasses.replace(config, **{part: tower})
    else:
        config = dataclasses.replace(config, **{field: value})
    weights = dataclasses.replace(weights, config=config, preprocess=preprocess)
    with pytest.raises(InputError, match=message):
        write_huggingface(weights, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_towers_of_another_class_are_refused(folder, tmp_path):
    weights = open_weights(str(folder))
    with pytest.raises(InputError, match="a Siglip2Model has other towers than this"):
        write_clip(weights, str(tmp_path / "new"), kind="siglip2")


def test_a_learned_temperature_goes_out_as_a_logarithm(folder, tmp_path):
    weights = open_weights(str(folder))
    variables = dict(weights.variables)
    scale = variables.pop(("params", "log_temperature"))
    variables["params", "temperature"] = np.exp(scale)
    config = dataclasses.replace(weights.config, temperature_form="direct")
    changed = dataclasses.replace(weights, config=config, variables=variables)
    write_huggingface(changed, str(tmp_path / "back"))
    found = tensors_of(tmp_path / "back")["logit_scale"]
    np.testing.assert_allclose(found, 2.3, rtol=1e-6)


def test_openclip_s_form_of_a_clip_is_the_same_model(folder, tmp_path):
    weights = open_weights(str(folder))
    write_open_clip(weights, str(tmp_path / "open"))
    again = open_weights(str(tmp_path / "open"))
    assert digest(again) == digest(weights)
    assert again.config == weights.config


@pytest.mark.parametrize(
    ("name", "model"), [("clip_small", "CLIPModel"), ("siglip_small", "SiglipModel")]
)
def test_a_card_names_the_class_of_transformers(tmp_path, name, model):
    source = write_folder(tmp_path / name, name)
    card = make_card(source, open_weights(source), "ORG/NAME", "mit")
    assert f"from transformers import {model}, {model[:-5]}Processor" in card
    assert f"- {name.split('_')[0]}\n- dual-encoder" in card
    assert "ALIGN" not in card
    shorter = "resized by its shorter side" in card
    assert shorter == (name == "clip_small")
