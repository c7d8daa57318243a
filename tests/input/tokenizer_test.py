import gzip
import hashlib
import itertools
import json
import pathlib
import random

import numpy as np
import pytest
import tensorflow as tf

from align_jax.errors import InputError
from align_jax.input.characters import replacements, split_words
from align_jax.input.tokenizer import open_tokenizer
from align_jax.input.wordpiece import WordPiece
from align_jax.input.wordpiece_files import read_tokens
from align_jax.texts import NONE

# Vocabulary, texts and ids of Hugging Face's tokenizer, see golden/make_tokenizer.py.
GOLDEN = pathlib.Path(__file__).parents[1] / "golden/tokenizer.json.gz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "##s", "red", "cafe", ",", "猫"]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


@pytest.fixture(scope="module")
def golden():
    return json.loads(gzip.decompress(GOLDEN.read_bytes()))


@pytest.fixture(scope="module")
def golden_tokenizer(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "tokenizer.json"
    path.write_text(json.dumps(golden["tokenizer.json"]))
    return open_tokenizer(str(path), golden["max_tokens"])


def words_of(texts: list) -> list[list[str]]:
    words = split_words(tf.constant(texts)).to_list()
    return [[word.decode() for word in row] for row in words]


def split(text: str) -> str:
    return " ".join(text.translate(replacements(NONE)).split())


def test_ids_by_hand(vocabulary):
    texts = ["Red cats, CAFÉ", "", "xyz 猫cat"]
    tokenizer = open_tokenizer(str(vocabulary), 8)
    for ids in (tokenizer(tf.constant(texts)).numpy(), tokenizer.encode(texts)):
        assert ids.dtype == np.int32
        assert ids.tolist() == [
            [2, 6, 4, 5, 8, 7, 3, 0],
            [2, 3, 0, 0, 0, 0, 0, 0],
            [2, 1, 9, 4, 3, 0, 0, 0],
        ]


def test_both_forms_give_the_same_ids_for_any_vocabulary():
    draw = random.Random(0)
    texts = ["a" * length for length in (99, 100, 101)] + ["é" * 100, "日" * 101]
    for trial in range(20):
        pieces = {*WORDS[:4], "a", "##", "#", "", "a" * 120, "##[UNK]", "A"}
        for _ in range(draw.choice([5, 50, 300])):
            length = draw.randint(1, 4)
            piece = "".join(draw.choices("abcd日#[]-,'", k=length))
            pieces.add(draw.choice(["", "##"]) + piece)
        tokenizer = WordPiece(
            ["[PAD]", *sorted(pieces - {"[PAD]"})], draw.choice([2, 3, 8, 40])
        )
        drawn = [
            draw.choices("abcdé日#[]-,'  ", k=draw.randrange(60)) for _ in "x" * 90
        ]
        some = [*texts, "Straße ﬁ ½ \x07x", *map("".join, drawn)]
        ids = tokenizer(tf.constant(some)).numpy()
        np.testing.assert_array_equal(tokenizer.encode(some), ids, str(trial))


def test_a_long_text_is_cut_and_still_ends_in_sep(vocabulary):
    tokenizer, text = open_tokenizer(str(vocabulary), 5), "cat " * 20
    assert tokenizer(tf.constant([text])).numpy().tolist() == [[2, 4, 4, 4, 3]]
    assert tokenizer.encode([text]).tolist() == [[2, 4, 4, 4, 3]]


def test_size_and_digest_are_the_files(vocabulary):
    tokenizer = open_tokenizer(str(vocabulary), 8)
    assert tokenizer.size == len(WORDS)
    assert tokenizer.digest == hashlib.sha256(vocabulary.read_bytes()).hexdigest()


def test_what_is_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no vocabulary at .*none\.txt"):
        open_tokenizer(str(tmp_path / "none.txt"), 8)
    path = tmp_path / "wrong.txt"
    path.write_text("cat\n[UNK]\n")
    with pytest.raises(InputError, match=r"first token is \['cat'\] and it lacks"):
        open_tokenizer(str(path), 8)


def test_ids_and_masks_are_hugging_faces(golden, golden_tokenizer):
    assert len(golden["texts"]) > 1500
    dataset = tf.data.Dataset.from_tensor_slices(golden["texts"]).batch(500)
    ids = np.concatenate(list(dataset.map(golden_tokenizer).as_numpy_iterator()))
    np.testing.assert_array_equal(golden_tokenizer.encode(golden["texts"]), ids)
    for text, row, wanted in zip(golden["texts"], ids, golden["ids"], strict=True):
        padding = [0] * (golden["max_tokens"] - len(wanted))
        assert row.tolist() == wanted + padding, text
        assert all(wanted)  # so that ids != 0 is Hugging Face's attention mask


def test_words_around_every_code_point_are_hugging_faces(golden):
    block = 0x110000 // len(golden["block_digests"])
    digests = []
    for start in range(0, 0x110000, block):
        points = range(start, start + block)
        texts = [f"a{chr(p)}b" for p in points if not 0xD800 <= p < 0xE000]
        words = tf.constant([], tf.string)
        if texts:
            words = tf.strings.reduce_join(
                split_words(tf.constant(texts)), -1, False, " "
            )
            assert words.numpy().tolist() == [split(text).encode() for text in texts]
        digests.append(hashlib.sha256(b"\n".join(words.numpy())).hexdigest()[:8])
    wrong = [i for i, d in enumerate(golden["block_digests"]) if d != digests[i]]
    assert not wrong, f"blocks of {block} code points: {wrong}"


def test_the_order_of_marks_is_the_only_other_difference(golden):
    marks = golden["sorted_marks"]
    assert len(marks) == 83
    texts = [f"a{x}{y}" for x, y in itertools.product(marks, marks)]
    assert words_of(texts) == [[text] for text in texts]


def test_text_cannot_hold_special_tokens(golden_tokenizer):
    text = "[PAD] x[SEP][CLS] [MASK] [UNK]"
    ids = golden_tokenizer(tf.constant([text])).numpy()[0].tolist()
    spaced = text.replace("[", "[ ").replace("]", " ]").lower()
    assert ids == golden_tokenizer(tf.constant([spaced])).numpy()[0].tolist()
    assert [ids.count(special) for special in (1, 2, 3, 4)] == [0, 1, 1, 0]
    assert 0 not in ids[: ids.index(3)]
    assert golden_tokenizer.encode([text])[0].tolist() == ids


def test_bytes_that_are_not_utf8_are_dropped():
    draw = random.Random(0)
    broken = [
        b"caf\xe9 \xff",
        b"a\xed\xa0\x80b",
        b"\xf0\x9f\x98",
        b"\xe2\x82 x\xc0\x80",
    ]
    for _ in range(500):
        text = "".join(draw.choices("aZé ,猫😀", k=9)).encode()
        at = draw.randrange(len(text))
        broken.append(text[:at] + bytes([draw.randrange(256)]) + text[at + 1 :])
    assert words_of(broken) == words_of([b.decode(errors="replace") for b in broken])
    assert words_of(broken[:3]) == [["caf"], ["ab"], []]


def test_vocabulary_files_end_their_lines_with_newlines_only(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("[PAD]\na\u2028\n\x85\n\nb".encode())
    assert read_tokens(str(path))[0] == ["[PAD]", "a\u2028", "\x85", "", "b"]
    path.write_bytes(b"[PAD]\r\na\r\n")
    assert read_tokens(str(path))[0] == ["[PAD]", "a"]


def test_a_tokenizer_json_is_its_vocabulary(golden, golden_tokenizer, tmp_path):
    vocabulary = golden["tokenizer.json"]["model"]["vocab"]
    lines = tmp_path / "vocab.txt"
    lines.write_text("".join(f"{token}\n" for token in vocabulary))
    assert read_tokens(str(lines))[0] == list(vocabulary)
    assert open_tokenizer(str(lines), 64).digest == golden_tokenizer.digest
    content = golden["tokenizer.json"]
    by_name = {"vocab": dict(sorted(vocabulary.items()))}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content | {"model": content["model"] | by_name}))
    assert read_tokens(str(path))[0] == list(vocabulary)


@pytest.mark.parametrize(
    ("part", "field", "value", "found"),
    [
        ("normalizer", "lowercase", False, "normalizer of .*'lowercase': False"),
        ("normalizer", "strip_accents", False, "'strip_accents': False"),
        ("normalizer", "type", "NFC", "normalizer of .*'NFC'"),
        ("model", "type", "BPE", "model of .*'BPE'"),
        ("model", "max_input_chars_per_word", 50, "'max_input_chars_per_word': 50"),
        ("model", "vocab", {"a": 0, "b": 2}, "from 0 to 2, but it has 2 tokens"),
    ],
)
def test_another_tokenizer_json_is_refused(tmp_path, golden, part, field, value, found):
    content = dict(golden["tokenizer.json"])
    content[part] = content[part] | {field: value}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=found):
        read_tokens(str(path))


def test_broken_vocabulary_files_are_refused(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("a\nb\na\n")
    with pytest.raises(InputError, match=r"more than once: \['a'\]"):
        read_tokens(str(path))
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(InputError, match=r"not UTF-8 text: .*0xff"):
        read_tokens(str(path))
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON: Expecting"):
        read_tokens(str(path))


# Parts of texts whose lengths or word ends the normalisation changes.
PARTS = [b"cat", b"cats", b"red", b"xyz", b",", b" ", b"\t\n", "猫".encode(), b"\xff"]
PARTS += [
    c.encode() for c in ("é", "e\u0301", "\u0301", "\u200b", "한", "Ǆ", "ﬁ", "🐈")
]
PARTS += [b"\x00", b"\x0b", b"\xe7\x8c", "\u00a0".encode(), "\u3000".encode()]


def random_text(drawn: random.Random) -> bytes:
    """A text of any length, with runs of one part that are short, long or near 100."""
    lengths = [1, 1, 1, 2, 50, 98, 99, 100, 101, 102, 400, 3000]
    count = drawn.choice([0, 1, 3, 10, 40])
    return b"".join(
        drawn.choice(PARTS) * drawn.choice(lengths)
        + drawn.choice([b"", b"", b" ", b"a", b" cat "])
        for _ in range(count)
    )


@pytest.mark.parametrize("max_tokens", [3, 5, 32])
def test_a_text_has_the_same_ids_as_without_the_cut(vocabulary, max_tokens):
    tokenizer = open_tokenizer(str(vocabulary), max_tokens)
    drawn = random.Random(max_tokens)
    texts = tf.constant([random_text(drawn) for _ in range(300)])
    lengths = tf.strings.length(texts).numpy()
    assert (lengths < 16 * max_tokens).any()
    assert (lengths > 1000 * max_tokens).any()
    expected = tokenizer._ids(tokenizer._split(texts)).numpy()
    np.testing.assert_array_equal(tokenizer(texts).numpy(), expected)
    alone = [tokenizer(texts[i : i + 1]).numpy()[0] for i in range(0, 300, 10)]
    np.testing.assert_array_equal(alone, expected[::10])
    assert len({*map(tuple, expected.tolist())}) > max_tokens


def test_a_word_at_the_cut_is_whole(vocabulary):
    tokenizer = open_tokenizer(str(vocabulary), 5)  # first cut after 80 bytes
    texts = [b"x" * n + b" red cats red" for n in range(60, 90)]
    texts += [b"cat" + b"s" * n + b" red" for n in (*range(90, 105), 500)]
    for text in texts:
        expected = tokenizer._ids(tokenizer._split(tf.constant([text]))).numpy()
        assert tokenizer(tf.constant([text])).numpy().tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (b"red cats " * 100_000, [2, 6, 4, 5, 6, 4, 5, 3]),
        (b" \n" * 500_000 + b"red", [2, 6, 3, 0, 0, 0, 0, 0]),
        (b"a" * 1_000_000 + b" red", [2, 1, 6, 3, 0, 0, 0, 0]),
        ("猫".encode() * 300_000, [2, 9, 9, 9, 9, 9, 9, 3]),
    ],
)
def test_few_bytes_of_a_huge_text_are_tokenized(vocabulary, text, ids):
    tokenizer = open_tokenizer(str(vocabulary), 8)
    texts = tf.constant([text, b"cat"])
    assert tokenizer(texts).numpy().tolist() == [ids, [2, 4, 3, 0, 0, 0, 0, 0]]
    assert tf.strings.length(tokenizer._cut(texts)).numpy().max() <= 4 * 16 * 8
