"""Folders of OpenCLIP, beside its results in golden/."""

import dataclasses
import gzip
import json
import math
import pathlib

import pytest

from align_jax.errors import InputError
from align_jax.input.stored_tokenizer import special_token
from align_jax.input.wordpiece_files import write_tokenizer
from align_jax.models import convnext
from align_jax.models.parameters import variable_shapes
from align_jax.texts import NONE
from align_jax.weights.clip_folder import write_open_clip
from align_jax.weights.folder import write_weights
from align_jax.weights.open_clip_config import read_open_clip
from align_jax.weights.open_clip_config import write_open_clip as write_open_clip_config
from align_jax.weights.open_clip_tokenizer import open_cleaned
from align_jax.weights.source import open_weights
from align_jax.weights.starts import describe_start
from tests.golden import clip_arrays
from tests.weights import outputs
from tests.weights.clip_folders import (
    assert_same,
    edit,
    tensors_of,
    vocabulary,
    write_tensors,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/open_clip.json.gz"
MODELS = json.loads(gzip.decompress(GOLDEN.read_bytes()))
FILE = "open_clip_model.safetensors"
CONVNEXT = {"timm_model_name": "convnext_base", "timm_pool": "", "timm_proj": "linear"}


def write_folder(folder: pathlib.Path, name: str) -> str:
    """Writes a golden model's folder as OpenCLIP does; returns its path."""
    golden = MODELS[name]
    folder.mkdir()
    write_tensors(golden, folder / FILE)
    described = {"model_cfg": golden["config"], "preprocess_cfg": golden["pictures"]}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    words = vocabulary(golden["config"]["text_cfg"]["vocab_size"], golden["end"])
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return str(folder)


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_and_logits_are_openclips(name, tmp_path):
    golden = MODELS[name]
    weights = open_weights(write_folder(tmp_path / name, name))
    text = golden["config"]["text_cfg"]
    ids = clip_arrays.tokens(
        text["vocab_size"], text["context_length"], golden["end"], golden["pad"]
    )
    pixels = clip_arrays.pixels(golden["size"])
    outputs.assert_golden(outputs.compute(weights, pixels, ids), golden)


@pytest.mark.parametrize("name", [n for n in MODELS if not n.startswith("siglip")])
def test_a_round_trip_gives_the_same_bits(name, tmp_path):
    source = pathlib.Path(write_folder(tmp_path / name, name))
    weights = open_weights(str(source))
    write_open_clip(weights, str(tmp_path / "back"))
    assert_same(tensors_of(source, FILE), tensors_of(tmp_path / "back", FILE))
    again = open_weights(str(tmp_path / "back"))
    assert again.config == weights.config
    assert again.preprocess == weights.preprocess


def test_a_siglip_is_not_written(tmp_path):
    name = next(n for n in MODELS if n.startswith("siglip"))
    weights = open_weights(write_folder(tmp_path / name, name))
    with pytest.raises(InputError, match="from timm by name; write a SiglipModel"):
        write_open_clip(weights, str(tmp_path / "back"))


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type is 'avg'; ours is"),
        ("vision_cfg", {"no_ln_pre": True}, "no_ln_pre is True; ours is False"),
        ("vision_cfg", {"attentional_pool": True}, "attentional_pool is True; ours is"),
        (
            "vision_cfg",
            {"ls_init_value": 1e-4},
            "ls_init_value is 0.0001; ours is None",
        ),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "of a ResNet; ours is a ViT"),
        (
            "vision_cfg",
            {"timm_model_name": "convnextv2_base"},
            "timm_model_name is 'convnextv2_base'; of timm's models ours are",
        ),
        (
            "vision_cfg",
            {"timm_model_name": "convnext_large", "timm_proj": "mlp"},
            "vision_cfg.timm_proj is 'mlp'; ours is 'linear'",
        ),
        (
            "vision_cfg",
            {"timm_model_name": "convnext_base"},
            "vision_cfg.timm_proj is None; ours is 'linear'",
        ),
        (
            "vision_cfg",
            CONVNEXT | {"timm_pool": "rot_attn"},
            "vision_cfg.timm_pool is 'rot_attn'; ours is ''",
        ),
        (
            "vision_cfg",
            CONVNEXT | {"timm_model_kwargs": {"use_grn": True}},
            "timm_model_kwargs has no field 'use_grn'",
        ),
        (
            "vision_cfg",
            CONVNEXT | {"timm_drop_path": False},
            "vision_cfg.drop_rate is False",
        ),
        ("vision_cfg", {"colour": 3}, "vision_cfg.colour is 3, a field that we do not"),
        (
            "text_cfg",
            {"hf_model_name": "roberta"},
            "hf_model_name is 'roberta'; ours is",
        ),
        ("text_cfg", {"text_arch": "modern"}, "text_arch is 'modern'; ours is 'clip'"),
        ("text_cfg", {"embed_cls": True}, "embed_cls is True; ours is False"),
        (
            "text_cfg",
            {"pool_type": "x"},
            "pool_type is 'x'; ours are argmax, eos, last",
        ),
        ("text_cfg", {"proj_bias": True}, "proj_bias is True and embed_dim"),
        (
            "text_cfg",
            {"norm_kwargs": {"elementwise": 1}},
            "norm_kwargs is .*a number eps",
        ),
        ("text_cfg", {"act_kwargs": {"x": 1}}, "act_kwargs is .'x': 1."),
        (None, {"multimodal_cfg": {}}, "multimodal_cfg is {}; ours is None"),
        (None, {"text_cfg": 3}, "text_cfg is 3; wanted a dict"),
        (None, {"quick_gelu": "x"}, "quick_gelu is 'x'; wanted true or false"),
        (
            None,
            {"init_logit_scale": 99},
            "init_logit_scale is 99; wanted a number from",
        ),
        (None, {"init_logit_scale": True}, "init_logit_scale is True; wanted a number"),
        (None, {"embed_dim": None}, "embed_dim is None; wanted a whole"),
        (None, {"init_logit_scale": float("nan")}, "init_logit_scale is nan; wanted a"),
    ],
)
def test_another_network_is_refused_by_the_field_s_name(part, fields, message):
    described = json.loads(json.dumps(MODELS["clip_small"]["config"]))
    (described if part is None else described[part]).update(fields)
    with pytest.raises(InputError, match=message):
        read_open_clip(described, None, "model_cfg")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize_mode": "longest"}, "resize_mode is 'longest'; ours are shortest, sq"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'; ours are bicubic"),
        ({"mean": [1]}, r"mean is \[1\]; wanted three numbers"),
        ({"std": [0, 1, 1]}, r"std is \[0, 1, 1\]; wanted three"),
        ({"colour": 3}, "preprocess_cfg.colour is a field that we do not know"),
    ],
)
def test_other_preprocessing_is_refused_by_the_field_s_name(tmp_path, fields, message):
    folder = pathlib.Path(write_folder(tmp_path / "clip", "clip_small"))
    edit(folder / "open_clip_config.json", "preprocess_cfg", **fields)
    with pytest.raises(InputError, match=message):
        open_weights(str(folder))


@pytest.mark.parametrize(
    ("name", "image", "activation"),
    [
        ("vit_base_patch16_siglip_224", (16, 768, 12, 12, 3072, 14), "gelu"),
        ("vit_so400m_patch14_siglip_384", (14, 1152, 27, 16, 4304, 16), "gelu"),
        ("vit_so400m_patch16_siglip_256", (16, 1152, 27, 16, 4304, 14), "gelu_tanh"),
        ("vit_giantopt_patch16_siglip_256", (16, 1536, 40, 16, 6144, 14), "gelu_tanh"),
    ],
)
def test_siglip_s_towers_of_timm_are_known_by_name(name, image, activation):
    vision = {"image_size": 224, "timm_model_name": name, "timm_pool": "map"}
    text = {"width": 64, "layers": 1, "heads": 1, "no_causal_mask": True}
    text |= {"proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    described = {
        "embed_dim": image[1],
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": vision | {"timm_model_pretrained": False, "timm_proj": "none"},
        "text_cfg": text | {"tokenizer_kwargs": {"clean": "canonicalize"}},
    }
    config = read_open_clip(described, None, "model_cfg")
    tower = config.image_tower
    found = (tower.patch, tower.width, tower.layers, tower.heads, tower.mlp_width)
    assert (*found, tower.position_grid) == image
    assert tower.activation == activation
    assert config.embedding_size is None
    assert config.logit_bias_init == -10.0


# Millions of parameters of whole models in OpenCLIP's docs/model_profile.csv.
@pytest.mark.parametrize(
    ("name", "size", "text", "millions", "key"),
    [
        ("base", 640, (10, 12), 179.39, "b"),
        ("xxlarge", 1024, (16, 24), 1200.58, "xxl"),
    ],
)
def test_convnexts_of_timm_are_known_by_name(name, size, text, millions, key):
    vision = CONVNEXT | {"timm_model_name": f"convnext_{name}", "image_size": 256}
    vision |= {"timm_drop": 0.0, "timm_drop_path": 0.1, "timm_model_pretrained": False}
    heads, layers = text
    described = {
        "embed_dim": size,
        "vision_cfg": vision,
        "text_cfg": {"width": size, "heads": heads, "layers": layers},
    }
    config = read_open_clip(described, None, "model_cfg")
    tower = config.image_tower
    assert (tower.stages, tower.drop_rate) == (convnext.SIZES[key], 0.1)
    assert tower.norm_epsilon == (1e-5 if name == "xxlarge" else 1e-6)
    count = sum(math.prod(shape) for shape in variable_shapes(config).values())
    assert round(count / 1e6, 2) == millions
    assert write_open_clip_config(config, 256)["vision_cfg"] == vision


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"stages": convnext.SIZES["t"][:3]},
            "4 stages .*; this model has 3 and 4",
        ),
        ({"patch": 8}, "a stem of 4 pixels; this model has 4 and 8"),
        ({"norm_epsilon": 1e-3}, "have model.image_tower.norm_epsilon 1e-06 or 1e-05"),
    ],
)
def test_a_convnext_that_timm_lacks_is_not_written(fields, message):
    described = MODELS["convnext_small"]["config"]
    config = read_open_clip(described, None, "model_cfg")
    tower = dataclasses.replace(config.image_tower, **fields)
    with pytest.raises(InputError, match=message):
        write_open_clip_config(dataclasses.replace(config, image_tower=tower), 64)


def test_texts_are_cleaned_as_the_config_says(tmp_path):
    pieces = ["<pad>", "</s>", "<unk>", "\N{LOWER ONE EIGHTH BLOCK}", *"abcC.!_"]
    described = {
        "added_tokens": [special_token(token, i) for i, token in enumerate(pieces[:3])],
        "normalizer": {"type": "Replace", "pattern": {"String": "c"}, "content": "b"},
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": pieces[3],
            "prepend_scheme": "always",
            "split": True,
        },
        "post_processor": None,
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[piece, -1.0] for piece in pieces],
            "byte_fallback": False,
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')

    def ids(text, options):
        tokenizer = open_cleaned(tmp_path, options, 12, "tokenizer_kwargs")
        return [pieces[i] for i in tokenizer.encode([text])[0] if i]

    space = pieces[3]
    text = " a_B!  C.b\t"
    canonical = [space, "a", space, "b", space, "b", "b"]
    assert ids(text, {"clean": "canonicalize"}) == canonical
    lower = [space, "a", "_", "b", "!", space, "b", ".", "b"]
    assert ids(text, {"clean": "lower"}) == lower
    kept = [space, "a", "_", "<unk>", "!", space, "C", ".", "b"]
    assert ids(text, {"clean": "whitespace"}) == kept
    for options, message in (
        ({"clean": "x"}, "clean is 'x'; ours are canonicalize, lower, whitespace"),
        ({"strip_sep_token": True}, "is .'strip_sep_token': True.; ours is only"),
    ):
        with pytest.raises(InputError, match=message):
            ids(text, options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 0}, "timm_model_kwargs.patch_size is 0; wanted 1"),
        ({"patch_size": "16"}, "timm_model_kwargs.patch_size is '16'"),
        ({"mlp_ratio": float("nan")}, "timm_model_kwargs.mlp_ratio is nan; wanted"),
        ({"mlp_ratio": float("inf")}, "timm_model_kwargs.mlp_ratio is inf; wanted"),
        ({"colour": 3}, "timm_model_kwargs has no field 'colour'"),
    ],
)
def test_arguments_of_timm_are_refused_by_their_names(fields, message):
    name = next(n for n in MODELS if n.startswith("siglip"))
    described = json.loads(json.dumps(MODELS[name]["config"]))
    vision = described["vision_cfg"]
    vision["timm_model_kwargs"] = (vision.get("timm_model_kwargs") or {}) | fields
    with pytest.raises(InputError, match=message):
        read_open_clip(described, None, "model_cfg")


def test_a_cleaning_must_be_a_name(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(InputError, match=r"clean is \['lower'\]; ours are"):
        open_cleaned(tmp_path, {"clean": ["lower"]}, 8, "tokenizer_kwargs")


def test_a_run_does_not_start_from_a_folder_whose_cleaning_is_in_another_file(tmp_path):
    """A run opens the tokenizer's file alone, and would get other ids."""
    folder = pathlib.Path(write_folder(tmp_path / "open", "clip_small"))
    words = (folder / "vocab.txt").read_text().split()
    template = write_tokenizer(words, NONE)["post_processor"]
    model = {"type": "BPE", "vocab": {w: i for i, w in enumerate(words)}, "merges": []}
    described = {"model": model, "post_processor": template}
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    assert describe_start(str(folder)).vocabulary == str(folder / "tokenizer.json")
    path = folder / "open_clip_config.json"
    found = json.loads(path.read_text())
    found["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "lower"}
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match="alone gives other ids than the model of"):
        describe_start(str(folder))
    ours = tmp_path / "ours"
    write_weights(open_weights(str(folder)), str(ours))
    assert describe_start(str(ours)).vocabulary == str(ours / "tokenizer.json")
