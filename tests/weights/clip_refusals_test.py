"""Folders of CLIP and SigLIP that are refused, and models that are not exported."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from align_jax.errors import InputError
from align_jax.input.wordpiece import WordPiece
from align_jax.weights.clip_folder import write_clip
from align_jax.weights.exports import write_huggingface
from align_jax.weights.source import open_weights
from tests.weights.clip_folders import edit, tensors_of, write_folder


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
            {"model_type": ["clip"]},
            r"model_type \['clip'\]; wanted",
        ),
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
        ("clip_small", {"rescale_factor": float("nan")}, "rescale_factor is nan"),
        (
            "clip_small",
            {"image_processor_type": ["x"]},
            r"image_processor_type is \['x'\]",
        ),
        ("clip_small", {"image_processor_type": 0}, "image_processor_type is 0; want"),
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


def test_missing_extra_and_misshapen_tensors_are_named(clip_folder):
    arrays = tensors_of(clip_folder)
    arrays["text_model.head"] = np.zeros((3, 2), np.float32)
    arrays["text_projection.weight"] = np.zeros(7, np.float32)
    del arrays["logit_scale"]
    safetensors.numpy.save_file(arrays, clip_folder / "model.safetensors")
    with pytest.raises(InputError) as caught:
        open_weights(str(clip_folder))
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


def test_towers_of_another_class_are_refused(clip_folder, tmp_path):
    weights = open_weights(str(clip_folder))
    with pytest.raises(InputError, match="a Siglip2Model has other towers than this"):
        write_clip(weights, str(tmp_path / "new"), kind="siglip2")


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("tokenizer_config.json", {"do_lower_case": False}, "do_lower_case is False"),
        ("tokenizer_config.json", {"padding_side": "left"}, "padding_side is 'left'"),
        ("special_tokens_map.json", {"pad_token": "<pad>"}, "pad_token is '<pad>'"),
        ("added_tokens.json", {"cat": 40}, "adds tokens to BERT's vocabulary"),
    ],
)
def test_another_wordpiece_than_the_uncased_one_is_refused(
    clip_folder, file, fields, message
):
    (clip_folder / file).write_text(json.dumps(fields))
    with pytest.raises(InputError, match=message):
        open_weights(str(clip_folder))


def test_an_end_token_that_transformers_reads_otherwise_is_refused(
    clip_folder, tmp_path
):
    weights = open_weights(str(clip_folder))
    words = list(weights.tokenizer.tokens)
    words[2], words[39] = words[39], words[2]
    text = dataclasses.replace(weights.config.text_tower, end_token=2)
    changed = dataclasses.replace(
        weights,
        config=dataclasses.replace(weights.config, text_tower=text),
        tokenizer=WordPiece(words, 8),
    )
    with pytest.raises(InputError, match="eos_token_id 2 takes the token with the lar"):
        write_huggingface(changed, str(tmp_path / "back"))
    assert not (tmp_path / "back").exists()
