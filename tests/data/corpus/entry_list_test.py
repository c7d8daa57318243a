import collections
import itertools
import math
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import run_command
from data import entries
from data.corpus.concepts import read_entries

TEXTS = ["new york in the rain"] * 4 + ["the rain, the sea", "the sea - in the sea"]
TEXTS += ["the new in the house"] * 3 + ["", "york", "--- !"]


def write_corpus(folder) -> None:
    names = [f"i{n}" for n in range(len(TEXTS))]
    table = {"image_id": names, "text": TEXTS, "key": range(len(TEXTS))}
    (folder / "stages").mkdir()
    pq.write_table(pa.table(table), folder / "stages" / "kept.parquet")


def expected(min_count: int, min_pmi: float) -> list[str]:
    """Lists the entries in plain Python."""
    words = collections.Counter(word for text in TEXTS for word in text.split(" "))
    pairs = collections.Counter(
        pair for text in TEXTS for pair in itertools.pairwise(text.split(" "))
    )
    found = {word: n for word, n in words.items() if n >= min_count}
    for (one, other), n in pairs.items():
        pmi = math.log2(n * words.total() / (words[one] * words[other]))
        if n >= min_count and pmi >= min_pmi:
            found[f"{one} {other}"] = n
    kept = [e for e in found if e not in ("", "-", "---", "!") and "," not in e]
    kept = [e for e in kept if not e.startswith("---")]
    return sorted(kept, key=lambda entry: (-found[entry], entry))


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["entries", *map(str, arguments)])
    return run_command("data.entries", entries.main)


def test_the_list_of_a_build_equals_plain_python(tmp_path, monkeypatch, capsys):
    write_corpus(tmp_path)
    out = tmp_path / "entries.txt"
    flags = ("--out", out, "--min-count", 2, "--min-pmi", 2)
    assert run(monkeypatch, tmp_path, *flags) == 0
    listed = read_entries(str(out))
    assert listed == expected(2, 2)
    assert "new york" in listed
    assert "in the" in set(expected(2, -99)) - set(listed)  # by chance
    assert f"{len(listed)} entries, from 'the' to" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, *flags, "--most", 3) == 0
    assert read_entries(str(out)) == listed[:3]


@pytest.mark.parametrize("option", ["--most", "--min-count"])
def test_a_number_below_one_is_refused(tmp_path, monkeypatch, capsys, option):
    write_corpus(tmp_path)
    out = tmp_path / "entries.txt"
    assert run(monkeypatch, tmp_path, "--out", out, option, 0) == 2
    assert f"{option} is 0; wanted at least 1" in capsys.readouterr().err
    assert not out.exists()


def test_a_list_without_entries_is_refused(tmp_path, monkeypatch, capsys):
    out = tmp_path / "entries.txt"
    assert run(monkeypatch, tmp_path, "--out", out) != 0
    assert "lacks stages/kept.parquet; wanted the workdir" in capsys.readouterr().err
    write_corpus(tmp_path)
    assert run(monkeypatch, tmp_path, "--out", out, "--min-count", 99) != 0
    assert "has no word that occurs 99 times" in capsys.readouterr().err
    assert not out.exists()
