import pathlib
import time

import pytest

from align_jax.errors import InputError
from data.curation.wordnet import WordNet
from tests.data.curation.pools import SYNSETS, write_wordnet


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    return pathlib.Path(write_wordnet(tmp_path / "wordnet"))


@pytest.mark.parametrize("word", SYNSETS)
def test_first_synsets(folder, word):
    assert WordNet(folder).first_synset(word) == SYNSETS[word]


def test_a_word_with_many_endings_takes_no_time(folder):
    wordnet = WordNet(folder)
    started = time.monotonic()
    for word in ("es" * 200, "ses" * 100 + "ing" * 100, "s" * 2000, ""):
        assert wordnet.first_synset(word) is None
    assert time.monotonic() - started < 5  # 3 to the power of 200, were forms repeated


def test_other_files_are_refused(folder):
    (folder / "index.verb").write_text("run v two\n")
    with pytest.raises(InputError, match=r"index\.verb is no index of WordNet"):
        WordNet(folder)
    (folder / "verb.exc").unlink()
    with pytest.raises(InputError, match=r"verb\.exc, a file of WordNet's database, "):
        WordNet(folder)
