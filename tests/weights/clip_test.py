"""Folders of CLIP and SigLIP, beside the results of transformers in golden/."""

import dataclasses
import json
import pathlib
from functools import partial

import jax
import numpy as np
import pytest
import safetensors.numpy

from align_jax.embed.model import Model
from align_jax.models.parameters import unflatten
from align_jax.report.model_card import make_card
from align_jax.weights.clip_folder import write_clip, write_open_clip
from align_jax.weights.exports import write_huggingface
from align_jax.weights.folder import digest, read_weights, write_weights
from align_jax.weights.source import open_weights
from tests.golden import clip_arrays
from tests.weights import outputs
from tests.weights.clip_folders import (
    CLIP_MEAN,
    CLIP_STD,
    MODELS,
    assert_same,
    processor,
    tensors_of,
    write_folder,
)


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


def test_our_folder_comes_back_as_it_went(clip_folder, tmp_path):
    arrays = tensors_of(clip_folder)
    places = np.arange(8)[None]
    arrays["text_model.embeddings.position_ids"] = places
    safetensors.numpy.save_file(arrays, clip_folder / "model.safetensors")
    weights = open_weights(str(clip_folder))
    write_weights(weights, str(tmp_path / "ours"))
    again = read_weights(str(tmp_path / "ours"))
    assert again.config == weights.config
    assert again.config.pixel_mean == tuple(CLIP_MEAN)
    assert again.preprocess == weights.preprocess
    assert again.preprocess.evaluation_resize == "shortest"
    assert again.preprocess.resampling == "bicubic"
    write_huggingface(again, str(tmp_path / "back"))
    assert_same(arrays, tensors_of(tmp_path / "back"))


def test_pictures_and_texts_go_through_the_folder_s_processors(clip_folder, tmp_path):
    """Pictures are resized, cropped and scaled, texts tokenized, as the files say."""
    from PIL import Image

    draw = np.random.default_rng(0)
    small = draw.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((70, 50), Image.Resampling.BICUBIC)
    weights = open_weights(str(clip_folder))
    model = Model(weights, batch_size=1)
    shorter = picture.resize((int(32 * 70 / 50), 32), Image.Resampling.BICUBIC)
    levels = np.asarray(shorter)[:, 6:38] / np.float32(255)
    scaled = (levels - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    ids = [[21, 3, 5, 39, 0, 0, 0, 0]]

    module, variables = weights.config.build(), unflatten(weights.variables)

    @partial(jax.jit, static_argnums=0)
    def encode(method, array):
        return module.apply(variables, array, method=method)

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
def test_a_folder_of_one_tower_gives_that_tower(clip_folder, tmp_path, part, prefixed):
    single, prefix = tmp_path / "single", f"{part}_model."
    single.mkdir()
    for path in clip_folder.iterdir():
        (single / path.name).write_bytes(path.read_bytes())
    config = MODELS["clip_small"]["config"][f"{part}_config"]
    (single / "config.json").write_text(json.dumps(config))
    arrays = {
        name if prefixed else name.removeprefix(prefix): array
        for name, array in tensors_of(clip_folder).items()
        if name.startswith(prefix)
    }
    arrays["visual_projection.weight"] = np.zeros((20, 32), np.float32)
    safetensors.numpy.save_file(arrays, single / "model.safetensors")
    tower, whole = open_weights(str(single)), open_weights(str(clip_folder))
    name = "image_tower" if part == "vision" else "text_tower"
    assert tower.kind == name
    assert tower.config == getattr(whole.config, name)
    assert {p for p in whole.variables if p[1] == name} == {*tower.variables}
    for path, array in tower.variables.items():
        np.testing.assert_array_equal(array, whole.variables[path])


def test_early_files_of_clip_are_read(clip_folder):
    """They have numbers as sizes, fields twice, and no names of classes."""
    described = json.loads((clip_folder / "config.json").read_text())
    for part in ("text", "vision"):
        full = described[f"{part}_config"]
        described[f"{part}_config_dict"] = full
        described[f"{part}_config"] = full | {"num_hidden_layers": 7}
    expected = open_weights(str(clip_folder))
    (clip_folder / "config.json").write_text(json.dumps(described))
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
    (clip_folder / "preprocessor_config.json").write_text(json.dumps(early))
    found = open_weights(str(clip_folder))
    assert found.config == expected.config
    assert found.preprocess == expected.preprocess


def test_a_learned_temperature_goes_out_as_a_logarithm(clip_folder, tmp_path):
    weights = open_weights(str(clip_folder))
    variables = dict(weights.variables)
    scale = variables.pop(("params", "log_temperature"))
    variables["params", "temperature"] = np.exp(scale)
    config = dataclasses.replace(weights.config, temperature_form="direct")
    changed = dataclasses.replace(weights, config=config, variables=variables)
    write_huggingface(changed, str(tmp_path / "back"))
    found = tensors_of(tmp_path / "back")["logit_scale"]
    np.testing.assert_allclose(found, 2.3, rtol=1e-6)


def test_openclip_s_form_of_a_clip_is_the_same_model(clip_folder, tmp_path):
    weights = open_weights(str(clip_folder))
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
