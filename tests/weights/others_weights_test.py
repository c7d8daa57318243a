"""Folders that others wrote: a fault is one line that names the file and the field."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from align_jax.errors import InputError
from align_jax.input.normalizers import BERT
from align_jax.input.wordpiece_files import MODEL
from align_jax.texts import NONE
from align_jax.weights.folder import read_weights, write_weights
from align_jax.weights.huggingface_config import read_bert_config, read_model_config
from align_jax.weights.huggingface_folder import IMAGE_PROCESSOR, read_align
from align_jax.weights.huggingface_vocabulary import read_uncased
from tests.weights.convert_test import TOKENS, edit, tensors_of, write_huggingface
from tests.weights.tensor_files_test import safetensors_of

SQUARE = {"height": 75, "width": 75}
CROP = {"height": 65, "width": 65}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return pathlib.Path(write_huggingface(tmp_path_factory.mktemp("a") / "odd", "odd"))


@pytest.fixture
def folder(source, tmp_path):
    """A copy of the folder of a small ALIGN, whose weights are a link."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            (copy / path.name).symlink_to(path)
        else:
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


def tokenizer_json(**fields):
    vocab = {token: index for index, token in enumerate(TOKENS)}
    parts = {"normalizer": BERT, "model": MODEL | {"vocab": vocab}}
    return parts | fields


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("tokenizer_config", {"do_lower_case": False}, "do_lower_case is False"),
        ("tokenizer_config", {"do_lower_case": "no"}, "do_lower_case is 'no'"),
        ("tokenizer_config", {"strip_accents": False}, "strip_accents is False"),
        (
            "tokenizer_config",
            {"tokenize_chinese_chars": False},
            "tokenize_chinese_chars is False; ours is True",
        ),
        ("tokenizer_config", {"do_basic_tokenize": False}, "do_basic_tokenize"),
        ("tokenizer_config", {"never_split": ["a"]}, r"never_split is \['a'\]"),
        ("tokenizer_config", {"truncation_side": "left"}, "truncation_side is 'left'"),
        (
            "tokenizer_config",
            {"tokenizer_class": "BertJapaneseTokenizer"},
            "tokenizer_class is 'BertJapaneseTokenizer'; ours is 'BertTokenizer'",
        ),
        ("tokenizer_config", {"unk_token": "<unk>"}, r"unk_token is '<unk>'; ours is"),
        ("tokenizer_config", {"added_tokens_decoder": [1]}, "added_tokens_decoder is"),
        (
            "tokenizer_config",
            {"added_tokens_decoder": {"12": {"content": "zebra"}}},
            "adds tokens to BERT's vocabulary, which we do not: 'zebra'",
        ),
        ("special_tokens_map", {"cls_token": {"content": "<s>"}}, "cls_token is '<s>'"),
        ("added_tokens", {"zebra": 12}, "added_tokens.json adds .*'zebra'"),
        (
            "tokenizer",
            tokenizer_json(normalizer=BERT | {"lowercase": False}),
            "normalizer of .*tokenizer.json is .*'lowercase': False",
        ),
        (
            "tokenizer",
            tokenizer_json(normalizer={"type": "Sequence", "normalizers": 3}),
            "normalizer of .*tokenizer.json is .*'type': 'Sequence'",
        ),
        (
            "tokenizer",
            tokenizer_json(normalizer={"normalizers": [{"pattern": 3}]}),
            "normalizer of .*tokenizer.json is ",
        ),
        (
            "tokenizer",
            tokenizer_json(pre_tokenizer={"type": "Whitespace"}),
            "pre_tokenizer is 'Whitespace'; ours is 'BertPreTokenizer'",
        ),
        ("tokenizer", tokenizer_json(added_tokens=3), "no list of objects"),
        (
            "tokenizer",
            tokenizer_json(model=MODEL | {"vocab": {"[PAD]": 0}}),
            r"vocab.txt and .*tokenizer.json hold different tokens \(12 and 1\)",
        ),
    ],
)
def test_another_tokenizer_than_the_uncased_one_is_refused(
    folder, file, fields, message
):
    (folder / f"{file}.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=message):
        read_align(str(folder))


def test_the_uncased_tokenizer_is_read_in_all_its_forms(folder):
    settings = {
        "do_lower_case": True,
        "strip_accents": True,
        "tokenize_chinese_chars": None,
        "never_split": None,
        "tokenizer_class": "BertTokenizerFast",
        "model_max_length": None,
        "unk_token": {"content": "[UNK]", "lstrip": False},
        "added_tokens_decoder": {"1": {"content": "[UNK]", "special": True}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    fast = tokenizer_json(
        normalizer=BERT | {"strip_accents": True},
        pre_tokenizer={"type": "BertPreTokenizer"},
        added_tokens=[{"content": "[MASK]"}, {"content": "<x>", "special": True}],
    )
    (folder / "tokenizer.json").write_text(json.dumps(fast))
    found = read_uncased(folder, 12, 6)
    assert (found.tokens, found.normalisation) == (tuple(TOKENS), NONE)
    (folder / "vocab.txt").unlink()
    weights = read_align(str(folder))
    assert weights.tokenizer.tokens == tuple(TOKENS)
    assert weights.config.text_tower.max_tokens == 16  # the rows of the positions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'rel",
        ),
        ({"is_decoder": True}, "is_decoder is True; ours is False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"pruned_heads": {"0": [1]}}, r"pruned_heads is \{'0': \[1\]\}"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config is \{'bits': 4\}"),
        ({"hidden_act": "gelu_new"}, "hidden_act is gelu_new; ours is gelu"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05; ours is 1e-12"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan; wanted a finite"),
        ({"hidden_size": 96}, "hidden_size is 96; wanted a multiple of 64"),
        ({"hidden_size": 0}, "hidden_size is 0; wanted 1 or more"),
        ({"hidden_size": True}, r"hidden_size is True \(bool\); wanted int"),
        (
            {"num_attention_heads": 4},
            "num_attention_heads is 4; ours is 1",
        ),
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is 1000000000; wanted 1 to 1000",
        ),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5; wanted"),
        (
            {"max_position_embeddings": 2},
            "max_position_embeddings is 2; wanted 3 or more",
        ),
        ({"vocab_size": 10**400}, "vocab_size is 10000.*; wanted a whole number"),
    ],
)
def test_another_bert_is_refused_by_the_field_s_name(fields, message):
    described = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256}
    with pytest.raises(InputError, match=f"config.json.{message}"):
        read_bert_config(described | fields, 64, "config.json")


def test_null_fields_and_other_names_of_the_same_function_are_the_defaults():
    written = {
        "hidden_act": "gelu_python",
        "layer_norm_eps": None,
        "pad_token_id": None,
        "position_embedding_type": "absolute",
        "pruned_heads": {},
        "is_decoder": False,
        "use_cache": True,
        "classifier_dropout": None,
    }
    assert read_bert_config(written, 64, "c") == read_bert_config({}, 64, "c")
    nulls = {"projection_dim": None, "text_config": None, "vision_config": None}
    silu = {"vision_config": {"hidden_act": "silu", "num_channels": None}}
    wanted = read_model_config({}, 289, 64, "c")
    for described in (nulls, silu):
        assert read_model_config(described, 289, 64, "c") == wanted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width_coefficient": 1e30}, r"width_coefficient is 1e\+30; wanted above 0"),
        ({"depth_coefficient": 0}, "depth_coefficient is 0.0; wanted above 0"),
        ({"depthwise_padding": ["a"]}, r"depthwise_padding\[0\] is 'a'"),
        ({"depthwise_padding": [-1]}, r"depthwise_padding\[0\] is -1; wanted 0"),
        ({"kernel_sizes": 3}, r"kernel_sizes is 3 \(int\); wanted tuple"),
        ({"drop_connect_rate": 2}, "drop_connect_rate is 2.0; wanted 0 to 1"),
        ({"pooling_type": "max"}, "pooling_type is max; ours is mean"),
        ({"hidden_dim": 9}, "hidden_dim is 9, below 10, the side of the last grid"),
    ],
)
def test_another_image_tower_is_refused_by_the_field_s_name(fields, message):
    with pytest.raises(InputError, match=f"c: vision_config.{message}"):
        read_model_config({"vision_config": fields}, 289, 64, "c")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 75}, "size is 75, not a square of height and width"),
        ({"size": "75"}, "size is '75', not a square"),
        ({"size": {"shortest_edge": 75}}, "size is .'shortest_edge': 75., not a sq"),
        ({"size": {"height": "75", "width": "75"}}, "size is .*not a square"),
        ({"size": {"height": True, "width": True}}, "size is .*not a square"),
        ({"size": {"height": 75.0, "width": 75.0}}, "size is .*not a square"),
        ({"size": {"height": 75, "width": 70}}, "size is .*not a square"),
        ({"size": {"height": 64, "width": 64}}, "resize is 64, below .*image_size, 65"),
        (
            {"size": {"height": 10**9, "width": 10**9}},
            "resize is 1000000000; wanted 1 to 65535",
        ),
        ({"crop_size": [65, 65]}, r"crop_size is \[65, 65\], not a square"),
        ({"resample": "bilinear"}, "resample is 'bilinear'; ours is 2"),
        ({"resample": None}, "resample is None; ours is 2"),
        ({"do_normalize": None}, "do_normalize is None; ours is False"),
        ({"do_resize": "true"}, "do_resize is 'true'; ours is True"),
        ({"rescale_factor": 10**400}, "rescale_factor is 1000.*; ours is 0.0078"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'; ours is 0.0078"),
        ({"do_pad": True}, "do_pad is True; ours is False"),
        ({"image_processor_type": "CLIPImageProcessor"}, "type is 'CLIPImageProc"),
    ],
)
def test_other_forms_of_processor_fields_are_named(folder, fields, message):
    processor = {**IMAGE_PROCESSOR, "resample": 2, "size": SQUARE, "crop_size": CROP}
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(processor))
    assert read_align(str(folder)).preprocess.resize == 75
    edit(path, **fields)
    with pytest.raises(InputError, match=f"preprocessor_config.json: .*{message}"):
        read_align(str(folder))


@pytest.mark.parametrize(
    ("limit", "message"), [(True, "wanted a number"), (2, "wanted 3 or more")]
)
def test_a_limit_of_tokens_that_is_none_is_refused(folder, limit, message):
    edit(folder / "tokenizer_config.json", model_max_length=limit)
    with pytest.raises(InputError, match=f"model_max_length is {limit}; {message}"):
        read_align(str(folder))


def test_whole_numbers_are_no_weights(folder, tmp_path):
    arrays = tensors_of(folder)
    name = "text_model.encoder.layer.0.output.dense.weight"
    arrays[name] = arrays[name].astype(np.int8)
    (folder / "model.safetensors").unlink()
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    with pytest.raises(InputError, match=f"{name} is int8; wanted floating-point"):
        read_align(str(folder))


def test_our_own_folder_with_other_numbers_is_refused(folder, tmp_path):
    write_weights(read_align(str(folder)), str(tmp_path / "ours"))
    path = tmp_path / "ours/weights.safetensors"
    arrays = safetensors.numpy.load_file(path)
    arrays["params.temperature"] = np.array(1)
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(InputError, match=r"params\.temperature is int64; wanted"):
        read_weights(str(tmp_path / "ours"))
    path.write_bytes(safetensors_of("F8_E4M3", 2, 2))
    with pytest.raises(InputError, match="a has the number type F8_E4M3"):
        read_weights(str(tmp_path / "ours"))


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"text_config": 3}, "text_config is 3; wanted a dict"),
        (
            "config.json",
            {"vision_config": {"width_coefficient": "x"}},
            "width_coeff.*'x'",
        ),
        ("config.json", {"text_config": {"hidden_size": "x"}}, "hidden_size is 'x'"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "model_max_length is 'x'"),
        ("processor_config.json", {"image_processor": 3}, "image_processor is a int"),
        (
            "processor_config.json",
            {"image_processor": {}},
            "do_resize is None; ours is",
        ),
        ("tokenizer.json", {}, r"no vocabulary \(model.vocab\)"),
        ("tokenizer.json", {"model": 3}, "a model that is no object"),
        ("size", None, "size is None, not a square"),
        ("crop_size", 3, "crop_size is 3, not a square"),
    ],
)
def test_a_foreign_folder_with_damaged_fields_is_refused(folder, file, fields, message):
    if file == "tokenizer.json":
        (folder / "vocab.txt").unlink()
        parts = {"normalizer": BERT, "model": {**MODEL}}
        (folder / file).write_text(json.dumps(parts | fields))
    elif file.endswith(".json"):
        edit(folder / file, **fields)
    else:
        path = folder / "processor_config.json"
        described = json.loads(path.read_text())["image_processor"]
        edit(path, image_processor=described | {file: fields})
    with pytest.raises(InputError, match=message):
        read_align(str(folder))
