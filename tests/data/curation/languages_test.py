"""Languages by models: a tiny one of fastText, and stand-ins for the packages."""

import pathlib
import struct
import sys

import numpy as np
import pytest

from align_jax.errors import InputError
from data.corpus.config import EngineConfig
from data.curation.config import (
    CurationConfig,
    FilterBounds,
    LanguageConfig,
    PoolConfig,
)
from data.curation.curator import curate
from data.curation.facts import count_tokens
from data.curation.languages import load_fasttext, load_gcld3
from tests.data.curation.bad_input_test import write_pool

WORDS = {"dog": "en", "the": "en", "hund": "de", "der": "de"}
TEXTS = ["the dog", "der\nhund", "der Hund\tdog hund", "", "unknown", "the\0dog"]
LANGUAGES = ["en", "de", "de", "", "", "en"]


def write_model(path: pathlib.Path) -> str:
    """Writes a supervised model of fastText, version 12, that knows WORDS."""
    labels = sorted({*WORDS.values()})
    arguments = (len(labels), 5, 1, 1, 5, 1, 3, 3, 0, 0, 0, 100)
    content = struct.pack("<2i12id", 793712314, 12, *arguments, 1e-4)
    entries = [(word, 0) for word in WORDS] + [(f"__label__{la}", 1) for la in labels]
    sizes = (len(entries), len(WORDS), len(labels), len(WORDS), -1)
    content += struct.pack("<3i2q", *sizes)
    for word, kind in entries:
        content += word.encode() + struct.pack("<bqb", 0, 1, kind)
    word_vectors = [[4.0 * (la == found) for la in labels] for found in WORDS.values()]
    for matrix in (word_vectors, np.eye(len(labels))):
        values = np.array(matrix, "<f4")
        content += struct.pack("<?2q", False, *values.shape) + values.tobytes()
    path.write_bytes(content)
    return str(path)


@pytest.mark.languages
def test_fasttext_finds_languages(tmp_path):
    detect = load_fasttext(write_model(tmp_path / "model.bin"))
    assert detect(TEXTS) == LANGUAGES
    assert detect([]) == []
    (tmp_path / "other.bin").write_bytes(b"no model" * 100)
    with pytest.raises(InputError, match=r"other\.bin is no model for languages"):
        load_fasttext(str(tmp_path / "other.bin"))


@pytest.mark.languages
def test_a_filter_by_fasttext(tmp_path):
    (tmp_path / "pool").mkdir()
    write_pool(tmp_path / "pool", text=TEXTS)
    model = write_model(tmp_path / "model.bin")
    config = CurationConfig(
        name="toy",
        seed=0,
        pool=PoolConfig(str(tmp_path / "pool")),
        filters={"de": FilterBounds(languages=("de",), min_tokens=3)},
        language=LanguageConfig("fasttext", model),
        engine=EngineConfig(workers=2),
    )
    curate(config, tmp_path / "out")
    found = np.load(tmp_path / "out" / "de" / "subset.npy")
    assert found["f1"].tolist() == [1, 2]  # the line feed is a token
    assert '<th scope="row">unknown</th>' in (tmp_path / "out/report.html").read_text()


class FakeModel:
    """Labels a text by its first word of WORDS."""

    def predict(self, text):
        assert "\n" not in text
        known = [WORDS[word] for word in text.split() if word in WORDS][:1]
        return tuple(f"__label__{label}" for label in known), (1.0,) * len(known)


def test_line_feeds_become_spaces_and_labels_lose_their_prefix(tmp_path, monkeypatch):
    module = type(sys)("fasttext")
    module.load_model = lambda path: FakeModel()
    monkeypatch.setitem(sys.modules, "fasttext", module)
    (tmp_path / "model.bin").write_bytes(b"")
    detect = load_fasttext(str(tmp_path / "model.bin"))
    assert detect(TEXTS[:5]) == LANGUAGES[:5]


def test_a_missing_model_or_package_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="which is no file"):
        load_fasttext(str(tmp_path / "model.bin"))
    monkeypatch.setitem(sys.modules, "fasttext", None)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pip install -e '\.\[languages\]'"):
        load_fasttext(str(tmp_path / "model.bin"))
    monkeypatch.setitem(sys.modules, "gcld3", None)
    with pytest.raises(InputError, match="pip install gcld3"):
        load_gcld3("")
    with pytest.raises(InputError, match="gcld3 has its own model, wanted ''"):
        load_gcld3("model.bin")


def test_gcld3_reads_a_thousand_bytes(monkeypatch):
    class Identifier:
        def __init__(self, min_num_bytes, max_num_bytes):
            assert (min_num_bytes, max_num_bytes) == (0, 1000)

        def FindLanguage(self, text):
            assert "\n" not in text
            found = type("Result", (), {})()
            found.language = WORDS.get(text.split()[0], "und")
            return found

    module = type(sys)("gcld3")
    module.NNetLanguageIdentifier = Identifier
    monkeypatch.setitem(sys.modules, "gcld3", module)
    assert load_gcld3("")(["der\nhund", "dog", "x y"]) == ["de", "en", "und"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" \t\r\v\f\0", 0),
        ("one", 1),
        ("one two", 2),
        (" one\ttwo\0three ", 3),
        ("one\u3000two\u00a0three", 1),  # no ASCII white space
        ("\n", 1),
        ("one\n", 2),
        ("\n\none \n two", 5),
    ],
)
def test_tokens_of_fasttext(text, count):
    assert count_tokens(text) == count


def test_an_unknown_kind_of_language_is_refused():
    with pytest.raises(InputError, match="did you mean 'fasttext'"):
        LanguageConfig("fastext")
