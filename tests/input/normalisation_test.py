# ruff: noqa: RUF001
"""A text is tokenized alike wherever it is read, however it is written."""

import gzip
import json
import pathlib
import random
import re
import unicodedata

import numpy as np
import pytest
import tensorflow as tf

from align_jax.errors import InputError
from align_jax.input.characters import replacements
from align_jax.input.normalizers import BERT, read_normalizer, write_normalizer
from align_jax.input.tokenizer import open_tokenizer
from align_jax.input.wordpiece import WordPiece
from align_jax.input.wordpiece_files import find_normalisation
from align_jax.texts import NFKC_CASEFOLD, NONE, check_template, check_text, normalise

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/tokenizer.json.gz"
CAPTIONS = [
    "Eine große Straße, WEISSER Fußball",
    "ὈΔΥΣΣΕΎΣ ὁ Ὀδυσσεύς, ᾳ ᾼ",
    "ﬁsh and ﬂowers, oﬃce, ŉ, ǆ, ﬓ",
    "½ cup, ¾ of 1⁄3, x², H₂O, ①, ㎏, ℡",
    "می\u200cخواهم, a soft\u00adhyphen, 👩\u200d👩\u200d👧, a\u200bb, \ufeffc",
    "Ｆｕｌｌ－ｗｉｄｔｈ ＬＥＴＴＥＲＳ, ﾊﾝｶｸ カナ",
    "ﺍﻟﻌﺮﺑﻴﺔ ﷺ ﻻ ﹰ, العربية",
    "İstanbul ISPARTA ıŞIK, ẞ, ſ, K, Å",
    "한국어 각 \u1100\u1161\u11a8, ᏣᎳᎩ ꭰ",
    "e\u0301 é, naïve ｇａ\u3099 ガ, \t two\u2028lines\x07",
]
POINTS = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]


def make_vocabulary() -> list[str]:
    """Makes a vocabulary of the characters of the normalised captions."""
    bert, text = replacements(NONE), normalise(" ".join(CAPTIONS), 1000)
    letters = {c for character in text for c in bert[ord(character)]} - {" "}
    pieces = sorted({*letters, *(f"##{c}" for c in letters)})
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]


def test_a_caption_has_the_ids_of_the_text_that_the_corpus_stores():
    tokenizer = WordPiece(make_vocabulary(), 96)
    assert tokenizer.normalisation == NFKC_CASEFOLD
    stored = [normalise(text, 1000) for text in CAPTIONS]
    asked, learned = (
        tokenizer(tf.constant(texts)).numpy() for texts in (CAPTIONS, stored)
    )
    np.testing.assert_array_equal(asked, learned)
    np.testing.assert_array_equal(tokenizer.encode(CAPTIONS), asked)
    assert not (asked == tokenizer.tokens.index("[UNK]")).any()
    # Stored texts have the same ids without this step, so old corpora keep theirs.
    plain = WordPiece(make_vocabulary(), 96, normalisation=NONE)
    np.testing.assert_array_equal(plain(tf.constant(stored)).numpy(), learned)
    assert (plain(tf.constant(CAPTIONS)).numpy() != asked).any(1).sum() >= 8


def test_every_character_is_replaced_as_the_corpus_and_bert_replace_it():
    bert, both = replacements(NONE), replacements(NFKC_CASEFOLD)
    words = {
        point: "".join(bert[ord(c)] for c in normalise(chr(point), 99)).split()
        for point in POINTS
    }
    assert not [hex(p) for p in POINTS if both[p].split() != words[p]]
    changed = [p for p in POINTS if unicodedata.category(chr(p))[0] in "LNS"]
    changed = [p for p in changed if both[p] != bert[p]]
    random_ = random.Random(0)
    for _ in range(5000):
        text = "".join(chr(random_.choice(changed)) for _ in range(4))
        text = random_.choice(CAPTIONS) + text
        stored = "".join(bert[ord(c)] for c in normalise(text, 999))
        assert "".join(both[ord(c)] for c in text).split() == stored.split(), text


def test_a_vocabulary_says_what_it_was_made_from():
    golden = json.loads(gzip.decompress(GOLDEN.read_bytes()))["tokenizer.json"]
    assert find_normalisation([*golden["model"]["vocab"]]) == NONE
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert find_normalisation([*special, "strasse", "##ss", "Ꭰ", "\u1100"]) == (
        NFKC_CASEFOLD
    )
    for token in ("ß", "##²", "Haus", "ﬁ", "ς"):
        assert find_normalisation([*special, token]) == NONE


def test_the_normalisation_is_part_of_the_identity(tmp_path):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ours = WordPiece([*special, "a"], 8)
    path = tmp_path / "tokenizer.json"
    vocabulary = {token: i for i, token in enumerate(ours.tokens)}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocabulary}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    digests = {}
    for normalisation in (NONE, NFKC_CASEFOLD):
        normalizer = write_normalizer(normalisation)
        path.write_text(json.dumps({"normalizer": normalizer, "model": model}))
        tokenizer = open_tokenizer(str(path), 8)
        assert tokenizer.normalisation == normalisation
        digests[normalisation] = tokenizer.digest
    assert digests[NFKC_CASEFOLD] == ours.digest != digests[NONE]
    assert read_normalizer({"type": "Lowercase"}) is None


def test_an_exported_normalizer_replaces_every_character_as_we_do():
    spaces, nfkd, *folded, last = write_normalizer(NFKC_CASEFOLD)["normalizers"]
    assert nfkd == {"type": "NFKD"}
    assert last == BERT
    pattern = re.sub(
        r"\\x\{(\w+)\}", lambda m: f"\\U{int(m[1], 16):08x}", spaces["pattern"]["Regex"]
    )
    bert, both = replacements(NONE), replacements(NFKC_CASEFOLD)
    names = {part["pattern"]["String"]: part["content"] for part in folded}

    def apply(text):
        text = unicodedata.normalize("NFKD", re.sub(pattern, " ", text))
        text = "".join(names.get(c, c) for c in text)
        return "".join(bert[ord(c)] for c in text).split()

    wrong = [p for p in POINTS if apply(f"a{chr(p)}a") != f"a{both[p]}a".split()]
    # Python's Unicode decomposes it; that of the library is older and does not.
    assert {*wrong} <= {0x11938}, [hex(p) for p in wrong[:20]]


@pytest.mark.parametrize("template", ["a {} and {}", "{} {c}", "a {} {", "a }", "{:d}"])
def test_templates_that_cannot_be_filled_are_refused(template):
    with pytest.raises(
        InputError, match=r"x has the template .* wanted a sentence with one {}"
    ):
        check_template(template, "x")
    check_template("a {} in {{braces}}", "x")


def test_half_a_surrogate_pair_is_refused_in_one_line():
    check_text("a 😀", "x")
    for bad in ("a \ud83d b", 3, None):
        with pytest.raises(InputError, match=r"^x is .*; wanted a text") as error:
            check_text(bad, "x")
        str(error.value).encode()
