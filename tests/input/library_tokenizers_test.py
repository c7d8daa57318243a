"""Tokenizers of the libraries `tokenizers` and `sentencepiece` give the plain ids."""

import base64
import collections
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
import sentencepiece
import tensorflow as tf

from align_jax.errors import InputError
from align_jax.input.library_tokenizer import LibraryTokenizer
from align_jax.input.sentence_pieces import SentencePieces
from align_jax.input.stored_tokenizer import special_token
from align_jax.input.tokenizer import find_published, open_tokenizer
from align_jax.texts import fold
from data.corpus.sentence_pieces import learn_pieces, settings_file
from tests.input.hostile import PLAIN, SPECIAL, hostile_texts
from tests.input.plain_tokenizers import (
    bpe_split,
    clip_ids,
    learn_clip,
    merges_of,
    piece_ids,
    unigram_split,
)

# Results of transformers, see golden/make_library_tokenizers.py.
GOLDEN = pathlib.Path(__file__).parents[1] / "golden/library_tokenizers.json.gz"
LENGTH = 24
TEXTS = hostile_texts()
SPACE = "\u2581"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def clip(folder):
    """CLIP's files: (path of vocab.json, ids by token, merges)."""
    vocabulary, merges = learn_clip(PLAIN, 300)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return str(folder / "vocab.json"), vocabulary, merges


@pytest.fixture(scope="module")
def models(folder):
    """Models of SentencePiece: paths, scores of pieces and ids, by kind."""
    words = collections.Counter(w for text in PLAIN for w in fold(text).split())
    found = {}
    for kind in ("unigram", "bpe"):
        path = folder / kind / "tokenizer.model"
        path.parent.mkdir()
        path.write_bytes(learn_pieces(words.items(), 700, kind))
        path.with_name("tokenizer_config.json").write_text(settings_file())
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        pieces = range(processor.get_piece_size())
        ids = {processor.id_to_piece(i): i for i in pieces}
        scores = {
            piece: processor.get_score(i)
            for piece, i in ids.items()
            if not (processor.is_byte(i) or processor.is_control(i) or i == 2)
        }
        found[kind] = str(path), scores, ids
    return found


def describe(kind, scores, ids):
    """The tokenizer.json of a SentencePiece model in the form of Gemma's or T5's."""
    added = [special_token(t, i) for i, t in enumerate(("<pad>", "</s>", "<unk>"))]
    if kind == "bpe":
        model = {"type": "BPE", "vocab": ids, "merges": merges_of(scores)}
        model |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    else:
        pieces = [[piece, scores.get(piece, 0.0)] for piece in ids]
        model = {"type": "Unigram", "vocab": pieces, "unk_id": 2, "byte_fallback": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": space,
        "pre_tokenizer": None,
        "post_processor": template,
        "decoder": None,
        "model": model,
    }


@pytest.fixture(scope="module")
def described(folder, models):
    """Paths of tokenizer.json files with the pieces of `models`, by kind."""
    found = {}
    for kind, (_, scores, ids) in models.items():
        path = folder / f"{kind}_json" / "tokenizer.json"
        path.parent.mkdir()
        path.write_text(json.dumps(describe(kind, scores, ids)))
        settings = {"pad_token": "<pad>", "padding_side": "right"}
        path.with_name("tokenizer_config.json").write_text(json.dumps(settings))
        found[kind] = str(path)
    return found


@pytest.fixture(scope="module")
def opened(clip, models, described):
    """Tokenizers of every class, by name."""
    paths = {"clip": clip[0]}
    paths |= {f"{kind}.model": path for kind, (path, *_) in models.items()}
    paths |= {f"{kind}.json": path for kind, path in described.items()}
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


def test_clip_s_ids_are_those_of_the_published_algorithm(clip, opened):
    _, vocabulary, merges = clip
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    plain = [clip_ids(text, vocabulary, merges) for text in TEXTS]
    assert_rows(opened["clip"].encode(TEXTS), rows(plain, [start], [end], end))
    assert (opened["clip"].pad_token, opened["clip"].end_token) == (end, end)


@pytest.mark.parametrize(
    ("kind", "split"), [("unigram", unigram_split), ("bpe", bpe_split)]
)
def test_sentencepiece_s_ids_are_those_of_the_papers(opened, models, kind, split):
    _, scores, ids = models[kind]
    plain = [piece_ids(fold(text), split, scores, ids) for text in TEXTS]
    assert_rows(opened[f"{kind}.model"].encode(TEXTS), rows(plain, [], [1], 0))


@pytest.mark.parametrize(
    ("kind", "split"), [("unigram", unigram_split), ("bpe", bpe_split)]
)
def test_a_tokenizer_json_has_the_ids_of_its_model(opened, models, kind, split):
    _, scores, ids = models[kind]
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


def test_ids_without_tensorflow(clip, models, described):
    paths = [clip[0], *(path for path, *_ in models.values()), *described.values()]
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


def change(path, folder, **fields):
    """Writes a tokenizer.json with changed fields to another folder."""
    found = json.loads(pathlib.Path(path).read_text()) | fields
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(found))
    return str(folder / "tokenizer.json")


def test_a_file_that_does_not_say_all_is_refused(described, models, clip, tmp_path):
    def refused(path, message, **settings):
        with pytest.raises(InputError, match=message):
            open_tokenizer(str(path), LENGTH, settings)

    path, pad = described["bpe"], {"pad_token": "<pad>"}
    refused(path, "does not say which token is padding")
    refused(path, "has no token '<no>'", pad_token="<no>")
    refused(path, "pad_token is 3 in", pad_token=3)
    refused(path, "padding_side 'left'; ours is", padding_side="left")
    refused(path, "there is no bos_token", add_bos_token=True, **pad)
    level = change(path, tmp_path / "level", model={"type": "WordLevel", "vocab": {}})
    refused(level, "is 'WordLevel'; wanted WordPiece, BPE, Unigram")
    other = change(path, tmp_path / "other", post_processor={"type": "Odd"})
    refused(other, "post_processor of .* is 'Odd'", **pad)
    broken = change(
        path, tmp_path / "broken", post_processor={"type": "BertProcessing"}
    )
    refused(broken, "post_processor of .* lacks 'cls'", **pad)
    broken = change(path, tmp_path / "merges", pre_tokenizer={"type": "Odd"})
    refused(broken, "is broken: ", **pad)
    broken = change(path, tmp_path / "tokens", added_tokens=[{"id": 0}])
    refused(broken, "broken list of tokens", **pad)
    odd = json.loads(pathlib.Path(path).read_text())["model"] | {"merges": ["a"]}
    broken = change(path, tmp_path / "pairs", model=odd)
    refused(broken, "no list of merges of two tokens", **pad)
    model = models["bpe"][0]
    refused(model, "has no token '<no>'", pad_token="<no>")
    refused(model, "normalisation 'no'; wanted one of", normalisation="no")
    (tmp_path / "cut.model").write_bytes(pathlib.Path(model).read_bytes()[:-5])
    refused(tmp_path / "cut.model", "is no model of SentencePiece")
    (tmp_path / "vocab.json").write_text('{"<|endoftext|>": 0}')
    refused(tmp_path / "vocab.json", r"it lacks <\|startoftext\|>")
    (tmp_path / "vocab.json").write_text(pathlib.Path(clip[0]).read_text())
    refused(tmp_path / "vocab.json", r"merges\.txt")
    (tmp_path / "merges.txt").write_text("a b\nc d e\n")
    refused(tmp_path / "vocab.json", "has the line 'c d e'; wanted two tokens")
    with pytest.raises(InputError, match="has no tokenizer: none of spiece"):
        find_published(str(tmp_path / "level" / "none"))


def test_settings_choose_special_tokens_and_cleaning(described, models):
    path, pad = described["bpe"], {"pad_token": "<pad>"}
    ended = open_tokenizer(path, LENGTH, pad)
    assert (ended.frame.first, ended.frame.last, ended.pad_token) == ((), (1,), 0)
    bare = open_tokenizer(path, LENGTH, pad | {"add_eos_token": False})
    assert (bare.frame.last, bare.end_token) == ((), None)
    both = {"pad_token": {"content": "</s>"}, "add_bos_token": True, "bos_token": "a"}
    both = open_tokenizer(path, LENGTH, both)
    assert (len(both.frame.first), both.pad_token) == (1, 1)
    lower = open_tokenizer(path, LENGTH, pad | {"tokenizer_class": "Siglip2Tokenizer"})
    texts = ["A Red CAT", "ÉTÉ"]
    expected = ended.encode([text.lower() for text in texts])
    np.testing.assert_array_equal(lower.encode(texts), expected)
    assert lower.digest != ended.digest
    assert len({t.digest for t in (ended, bare, both, lower)}) == 4

    model = models["unigram"][0]
    siglip = open_tokenizer(model, LENGTH, {"tokenizer_class": "SiglipTokenizer"})
    assert (siglip.pad_token, siglip.end_token) == (1, 1)
    plain = open_tokenizer(model, LENGTH, {"pad_token": "</s>"})
    expected = plain.encode(["a red cat its", ""])
    np.testing.assert_array_equal(siglip.encode(["A  red, CAT! it's", "?!"]), expected)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_added_tokens_that_are_not_special_are_found_in_texts(
    described, kind, tmp_path
):
    found = json.loads(pathlib.Path(described[kind]).read_text())
    size = len(found["model"]["vocab"])
    tag = found["added_tokens"][0] | {"content": "<b>", "special": False, "id": size}
    path = change(described[kind], tmp_path, added_tokens=[*found["added_tokens"], tag])
    pad = {"pad_token": "<pad>"}
    tokenizer = open_tokenizer(path, LENGTH, pad)
    assert tokenizer.size == size + 1
    (ids,) = tokenizer.split(["a<b>c</s>"])
    assert size in ids
    assert {0, 1}.isdisjoint(ids)
    added = [*found["added_tokens"], tag | {"id": size + 7}]
    path = change(described[kind], tmp_path, added_tokens=added)
    with pytest.raises(InputError, match=f"adds '<b>' as {size + 7}, but the libr"):
        open_tokenizer(path, LENGTH, pad)


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
