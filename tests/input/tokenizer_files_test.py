"""Files of tokenizers: which are refused, and what their settings change."""

import json
import pathlib

import numpy as np
import pytest

from align_jax.errors import InputError
from align_jax.input.tokenizer import find_published, open_tokenizer

LENGTH = 24


def change(path, folder, **fields):
    """Writes a tokenizer.json with changed fields to another folder."""
    found = json.loads(pathlib.Path(path).read_text()) | fields
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(found))
    return str(folder / "tokenizer.json")


def test_a_file_that_does_not_say_all_is_refused(
    piece_jsons, piece_models, clip_files, tmp_path
):
    def refused(path, message, **settings):
        with pytest.raises(InputError, match=message):
            open_tokenizer(str(path), LENGTH, settings)

    path, pad = piece_jsons["bpe"], {"pad_token": "<pad>"}
    refused(path, "does not say which token is padding")
    refused(path, "has no token '<no>'", pad_token="<no>")
    refused(path, "settings of .* have pad_token 3; wanted a token", pad_token=3)
    refused(path, "have add_eos_token 1; wanted true or false", add_eos_token=1, **pad)
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
    model = piece_models["bpe"][0]
    refused(model, "normalisation .'x'.; wanted one of", normalisation=["x"])
    open_tokenizer(model, LENGTH, {"normalisation": None, "tokenizer_class": ["x"]})
    refused(model, "has no token '<no>'", pad_token="<no>")
    refused(model, "normalisation 'no'; wanted one of", normalisation="no")
    (tmp_path / "cut.model").write_bytes(pathlib.Path(model).read_bytes()[:-5])
    refused(tmp_path / "cut.model", "is no model of SentencePiece")
    (tmp_path / "vocab.json").write_text('{"<|endoftext|>": 0}')
    refused(tmp_path / "vocab.json", r"it lacks <\|startoftext\|>")
    (tmp_path / "vocab.json").write_text(pathlib.Path(clip_files[0]).read_text())
    refused(tmp_path / "vocab.json", r"merges\.txt")
    (tmp_path / "merges.txt").write_text("a b\nc d e\n")
    refused(tmp_path / "vocab.json", "has the line 'c d e'; wanted two tokens")
    with pytest.raises(InputError, match="has no tokenizer: none of spiece"):
        find_published(str(tmp_path / "level" / "none"))


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("model", {"merges": [1]}, "no list of merges of two tokens"),
        ("model", {"merges": [["a", 1]]}, "no list of merges of two tokens"),
        ("model", {"unk_token": []}, r"has unk_token \[\]; wanted a token"),
        ("model", {"continuing_subword_prefix": 1}, "subword_prefix 1; wanted a token"),
        ("model", {"continuing_subword_prefix": "x"}, "but its continuing_subword_pre"),
        ("model", {"dropout": 0.5}, "has dropout 0.5, with which a text has other ids"),
        ("model", {"vocab": {"a": 2**40}}, "a whole number as id"),
        (None, {"normalizer": {"type": "Sequence", "normalizers": []}}, None),
        (None, {"normalizer": {"type": "Sequence"}}, "is broken"),
        (None, {"normalizer": [1]}, "is broken"),
        (None, {"padding": {"direction": "Left"}}, "padding.direction is 'Left'; our"),
        (None, {"truncation": {"direction": "Left"}}, "truncation.direction is 'Left'"),
        (
            None,
            {"post_processor": {"type": "BertProcessing", "cls": [0, []], "sep": "ab"}},
            r"adds the id \[\], which no token has",
        ),
        (
            None,
            {
                "post_processor": {
                    "type": "BertProcessing",
                    "cls": [0, 9**9],
                    "sep": "ab",
                }
            },
            "adds the id 387420489, which no token has",
        ),
        (
            None,
            {"added_tokens": [{"id": 7, "content": "</s>", "special": True}]},
            "'</s>' has the ids 1 and 7",
        ),
        (
            None,
            {"added_tokens": [{"id": 1, "content": "</s>", "special": "x"}]},
            "special is 'x'",
        ),
    ],
)
def test_a_broken_tokenizer_json_is_refused_in_one_line(
    piece_jsons, tmp_path, part, fields, message
):
    found = json.loads(pathlib.Path(piece_jsons["bpe"]).read_text())
    changed = {part: found[part] | fields} if part else fields
    path = change(piece_jsons["bpe"], tmp_path, **changed)
    settings = {"pad_token": "<pad>", "tokenizer_class": "Siglip2Tokenizer"}
    if message is None:
        open_tokenizer(path, LENGTH, settings).encode(["a"])
        return
    with pytest.raises(InputError, match=message) as error:
        open_tokenizer(path, LENGTH, settings)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_choose_special_tokens_and_cleaning(piece_jsons, piece_models):
    path, pad = piece_jsons["bpe"], {"pad_token": "<pad>"}
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

    model = piece_models["unigram"][0]
    siglip = open_tokenizer(model, LENGTH, {"tokenizer_class": "SiglipTokenizer"})
    assert (siglip.pad_token, siglip.end_token) == (1, 1)
    plain = open_tokenizer(model, LENGTH, {"pad_token": "</s>"})
    expected = plain.encode(["a red cat its", ""])
    np.testing.assert_array_equal(siglip.encode(["A  red, CAT! it's", "?!"]), expected)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_added_tokens_that_are_not_special_are_found_in_texts(
    piece_jsons, kind, tmp_path
):
    found = json.loads(pathlib.Path(piece_jsons[kind]).read_text())
    size = len(found["model"]["vocab"])
    tag = found["added_tokens"][0] | {"content": "<b>", "special": False, "id": size}
    path = change(
        piece_jsons[kind], tmp_path, added_tokens=[*found["added_tokens"], tag]
    )
    pad = {"pad_token": "<pad>"}
    tokenizer = open_tokenizer(path, LENGTH, pad)
    assert tokenizer.size == size + 1
    (ids,) = tokenizer.split(["a<b>c</s>"])
    assert size in ids
    assert {0, 1}.isdisjoint(ids)
    added = [*found["added_tokens"], tag | {"id": size + 7}]
    path = change(piece_jsons[kind], tmp_path, added_tokens=added)
    with pytest.raises(InputError, match=f"adds '<b>' as {size + 7}, but the libr"):
        open_tokenizer(path, LENGTH, pad)
