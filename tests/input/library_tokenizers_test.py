"""Tokenizers of the libraries `tokenizers` and `sentencepiece` give the plain ids."""

import base64
import copy
import gzip
import json
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from align_jax.errors import InputError
from align_jax.input.library_tokenizer import LibraryTokenizer
from align_jax.input.sentence_pieces import SentencePieces
from align_jax.input.tokenizer import find_published, open_tokenizer
from align_jax.texts import fold
from tests.input.hostile import PLAIN, SPECIAL, hostile_texts
from tests.input.plain_tokenizers import (
    SPACE,
    bpe_split,
    clip_ids,
    piece_ids,
    unigram_split,
)

# Results of transformers, see golden/make_library_tokenizers.py.
GOLDEN = pathlib.Path(__file__).parents[1] / "golden/library_tokenizers.json.gz"
LENGTH = 24
TEXTS = hostile_texts()


@pytest.fixture(scope="module")
def opened(clip_files, piece_models, piece_jsons):
    """Tokenizers of every class, by name."""
    paths = {"clip": clip_files[0]}
    paths |= {f"{kind}.model": path for kind, (path, *_) in piece_models.items()}
    paths |= {f"{kind}.json": path for kind, path in piece_jsons.items()}
    return {name: open_tokenizer(path, LENGTH) for name, path in paths.items()}


@pytest.fixture(scope="module")
def golden():
    return json.loads(gzip.decompress(GOLDEN.read_bytes()))


NAMES = ("clip", "unigram.model", "bpe.model", "unigram.json", "bpe.json")


def rows(found, first, last, pad):
    most = LENGTH - len(first) - len(last)
    framed = [[*first, *ids[:most], *last] for ids in found]
    return np.array([ids + [pad] * (LENGTH - len(ids)) for ids in framed], np.int32)


def assert_rows(found, expected, texts=TEXTS):
    assert found.dtype == np.int32
    wrong = [
        t for t, a, b in zip(texts, found, expected, strict=True) if (a != b).any()
    ]
    assert not wrong


def test_clip_s_ids_are_those_of_the_published_algorithm(clip_files, opened):
    _, vocabulary, merges = clip_files
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    plain = [clip_ids(text, vocabulary, merges) for text in TEXTS]
    assert_rows(opened["clip"].encode(TEXTS), rows(plain, [start], [end], end))
    assert (opened["clip"].pad_token, opened["clip"].end_token) == (end, end)


@pytest.mark.parametrize(
    ("kind", "split"), [("unigram", unigram_split), ("bpe", bpe_split)]
)
def test_sentencepiece_s_ids_are_those_of_the_papers(opened, piece_models, kind, split):
    _, scores, ids = piece_models[kind]
    plain = [piece_ids(fold(text), split, scores, ids) for text in TEXTS]
    assert_rows(opened[f"{kind}.model"].encode(TEXTS), rows(plain, [], [1], 0))


@pytest.mark.parametrize(
    ("kind", "split"), [("unigram", unigram_split), ("bpe", bpe_split)]
)
def test_a_tokenizer_json_has_the_ids_of_its_model(opened, piece_models, kind, split):
    _, scores, ids = piece_models[kind]
    if kind == "unigram":  # the library takes the names of bytes for pieces
        named = [piece for piece in ids if re.fullmatch("<0x..>", piece)]
        scores = scores | dict.fromkeys(named, 0.0)
    plain = []
    for text in TEXTS:
        found = []
        for piece in split(text.replace(" ", SPACE), scores):
            spelled = [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
            found += [ids[piece]] if piece in scores else spelled
        plain.append(found)
    assert_rows(opened[f"{kind}.json"].encode(TEXTS), rows(plain, [], [1], 0))


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_give_the_same_ids(opened, name):
    tokenizer = opened[name]
    data = tf.data.Dataset.from_tensor_slices(TEXTS).batch(100).map(tokenizer)
    assert data.element_spec.shape[1] == LENGTH
    found = np.concatenate([*data.as_numpy_iterator()])
    np.testing.assert_array_equal(found, tokenizer.encode(TEXTS))
    broken = tokenizer(tf.constant([b"a\xffcat", b"\xf0\x9f"])).numpy()
    np.testing.assert_array_equal(broken, tokenizer.encode(["acat", ""]))


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_text_keeps_its_end_and_copies_keep_the_ids(opened, name):
    tokenizer = opened[name]
    long = " ".join(PLAIN)
    (row,) = tokenizer.encode([long])
    assert row[-1] == tokenizer.end_token
    short = tokenizer.shortened(5)
    assert (short.max_tokens, tokenizer.max_tokens) == (5, LENGTH)
    (cut,) = short.encode([long])
    assert cut.tolist() == [*row[:4], tokenizer.end_token]
    assert short.digest == tokenizer.digest
    for again in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        np.testing.assert_array_equal(again.encode(TEXTS), tokenizer.encode(TEXTS))
        assert again.digest == tokenizer.digest
    with pytest.raises(InputError, match="sequences of 1 tokens have no place"):
        tokenizer.shortened(1)


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_files_give_the_same_ids(opened, name, tmp_path):
    tokenizer = opened[name]
    for file, content in tokenizer.files().items():
        (tmp_path / file).write_bytes(content)
    again = open_tokenizer(str(tmp_path / file), LENGTH)
    assert again.digest == tokenizer.digest
    assert (again.size, str(again)) == (tokenizer.size, str(tokenizer))
    np.testing.assert_array_equal(again.encode(TEXTS), tokenizer.encode(TEXTS))
    assert again.files() == tokenizer.files()
    others = {other.digest for n, other in opened.items() if n != name}
    assert tokenizer.digest not in others


@pytest.mark.parametrize("name", NAMES)
def test_no_text_holds_a_special_token(opened, name):
    tokenizer = opened[name]
    texts = [
        f"{a}{token}{b}" for token in SPECIAL for a in ("", "a", " ") for b in "b "
    ]
    special = {*tokenizer.frame.first, *tokenizer.frame.last, tokenizer.pad_token}
    for ids in tokenizer.split(texts):
        assert special.isdisjoint(ids)


def test_the_library_alone_gives_the_rows_of_a_stored_file(opened, tmp_path):
    import tokenizers

    path = tmp_path / "tokenizer.json"
    for name in ("clip", "unigram.json", "bpe.json"):
        path.write_bytes(opened[name].files()["tokenizer.json"])
        theirs = tokenizers.Tokenizer.from_file(str(path))
        found = [theirs.encode(text).ids for text in PLAIN]
        np.testing.assert_array_equal(found, opened[name].encode(PLAIN))


@pytest.mark.parametrize("name", NAMES)
def test_half_of_a_surrogate_pair_is_refused(opened, name):
    with pytest.raises(InputError, match="halves of surrogate pairs"):
        opened[name].encode(["fine", "\ud83d"])


def test_ids_without_tensorflow(clip_files, piece_models, piece_jsons):
    paths = [
        clip_files[0],
        *(path for path, *_ in piece_models.values()),
        *piece_jsons.values(),
    ]
    lines = f"""
import sys
sys.modules.update(dict.fromkeys(["tensorflow", "tensorflow_text"]))
from align_jax.input.tokenizer import open_tokenizer
for path in {paths}:
    assert open_tokenizer(path, 9).encode(["a cat"]).shape == (1, 9)
"""
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", lines], check=True, cwd=root)


def assert_case(case, texts, folder):
    """Checks our ids of a folder that transformers wrote; see golden's `make_case`."""
    folder.mkdir()
    for file, content in case["files"].items():
        (folder / file).write_bytes(base64.b64decode(content))
    expected = np.array(case["ids"], np.int32)
    tokenizer = open_tokenizer(find_published(str(folder)), expected.shape[1])
    assert_rows(tokenizer.encode(texts), expected, texts)
    found = tokenizer.pad_token, tokenizer.end_token
    assert found == (case["pad_token"], case["end_token"])


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_ids_are_those_of_transformers(golden, name, tmp_path):
    assert golden["texts"] == TEXTS
    assert len(TEXTS) == 1000
    assert_case(golden["folders"][name], TEXTS, tmp_path / name)


@pytest.mark.convert
@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_ids_are_those_of_transformers_as_installed(name, tmp_path):
    from tests.golden.make_library_tokenizers import make_case

    texts = hostile_texts(seed=1)
    case = make_case(name, texts)
    folder = tmp_path / name
    assert_case(case, texts, folder)


def test_siglip_2_is_lower_cased_whatever_class_its_folder_names(golden, tmp_path):
    files = golden["folders"]["siglip2"]["files"]
    described = json.loads(base64.b64decode(files["tokenizer.json"]))
    described["normalizer"] = described["normalizer"]["normalizers"][1]  # Gemma's
    settings = json.loads(base64.b64decode(files["tokenizer_config.json"]))
    settings["tokenizer_class"] = "GemmaTokenizer"
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    texts, length = golden["texts"], golden["max_tokens"]
    expected = golden["folders"]["siglip2"]["ids"]
    path = find_published(str(tmp_path))
    for model_type in ("siglip", "siglip2"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        tokenizer = open_tokenizer(path, length)
        np.testing.assert_array_equal(tokenizer.encode(texts), expected)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma"}))
    assert (open_tokenizer(path, length).encode(texts) != expected).any()


def test_the_class_is_chosen_by_the_file(opened):
    kinds = {name: type(tokenizer) for name, tokenizer in opened.items()}
    libraries = dict.fromkeys(("clip", "unigram.json", "bpe.json"), LibraryTokenizer)
    pieces = dict.fromkeys(("unigram.model", "bpe.model"), SentencePieces)
    assert kinds == libraries | pieces
