import collections
import itertools

import ibis
import numpy as np
import pytest

from data.corpus import ngram_counts
from data.corpus.config import CorpusConfig
from data.corpus.ngram_counts import save_counts
from data.corpus.rules import RuleBounds
from data.corpus.stage_tables import StageTables
from data.sources.config import SourceConfig

WORDS = [f"word{n}" for n in range(30)]


@pytest.fixture
def texts():
    """A table of texts, and the count of each n-gram."""
    random = np.random.default_rng(0)
    rows, counts = {}, collections.Counter()
    for _ in range(60):
        words = random.choice(WORDS, random.integers(1, 9)).tolist()
        rows[" ".join(words)] = int(random.integers(1, 5))
    rows[""] = 2
    for text, pairs in rows.items():
        words = text.split(" ")
        found = [*words, *map(" ".join, itertools.pairwise(words))]
        for ngram in found:
            counts[ngram] += pairs
    columns = {"text": [*rows], "pairs": [*rows.values()]}
    return ibis.memtable(columns), counts


def open_stages(folder, monkeypatch, room):
    """Opens stages whose memory holds `room` n-grams."""
    source = SourceConfig("parquet", "unused")
    config = CorpusConfig("counts", 0, source, RuleBounds(), vocabulary_size=100)
    stages = StageTables(config, folder)
    bytes_each = stages.engine.group_bytes() / room
    monkeypatch.setattr(ngram_counts, "NGRAM_BYTES", bytes_each)
    return stages


def read(stages):
    table = stages.engine.execute(stages.table("ngrams"))
    assert len(table) == len(set(table["ngram"]))
    return dict(zip(table["ngram"], table["count"], strict=True))


@pytest.mark.parametrize("room", [50, 10_000])
def test_parts_have_the_same_counts_as_one_count(texts, tmp_path, monkeypatch, room):
    table, counts = texts
    stages, splits = open_stages(tmp_path, monkeypatch, room), []
    save_split = stages.engine.save_split

    def spy(table, path, by, label):
        save_split(table, path, by, label)
        splits.append(len([*path.iterdir()]))

    monkeypatch.setattr(stages.engine, "save_split", spy)
    save_counts(stages, table)
    assert read(stages) == counts
    assert [*stages.folder.iterdir()] == [stages.stage("ngrams")]
    parts = 2 ** int(np.ceil(np.log2(len(counts) / room)))
    assert splits == ([parts] if room < len(counts) else [])
    stages.close()


@pytest.mark.parametrize("room", [50, 100])
def test_a_killed_build_goes_on(texts, tmp_path, monkeypatch, room):
    table, counts = texts
    stages = open_stages(tmp_path, monkeypatch, 50)
    save = stages.save

    def fail(name, table):
        if name.startswith("ngrams_in_") and name.endswith("=2"):
            raise KeyboardInterrupt
        save(name, table)

    monkeypatch.setattr(stages, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_counts(stages, table)
    stages.close()
    stages = open_stages(tmp_path, monkeypatch, room)
    save_counts(stages, table)
    assert read(stages) == counts
    assert [*stages.folder.iterdir()] == [stages.stage("ngrams")]
    stages.close()


def test_parts_of_a_build_that_was_killed_at_the_end_are_removed(
    texts, tmp_path, monkeypatch
):
    table, counts = texts
    stages = open_stages(tmp_path, monkeypatch, 50)
    remove = ngram_counts.places.remove
    monkeypatch.setattr(ngram_counts.places, "remove", lambda path: None)
    save_counts(stages, table)
    assert len([*stages.folder.iterdir()]) > 1
    monkeypatch.setattr(ngram_counts.places, "remove", remove)
    save_counts(stages, table)
    assert read(stages) == counts
    assert [*stages.folder.iterdir()] == [stages.stage("ngrams")]
    stages.close()
