import collections

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from data.corpus.config import CorpusConfig
from data.corpus.rules import RuleBounds
from data.sources.config import SourceConfig
from data.sources.source import SOURCES, list_shards, read_shard
from tests.data.sources.reading import read


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="kind is 'zip'; known: parquet, csv"):
        read("zip", tmp_path)
    with pytest.raises(InputError, match="kind is 'zip'; known: parquet, csv"):
        CorpusConfig("x", 0, SourceConfig("zip", "x"), RuleBounds(), 100)


@pytest.mark.parametrize("kind", ["csv", "folder"])
def test_files_at_a_url_are_refused(kind):
    with pytest.raises(InputError, match="gs://bucket is a URL; wanted a path on this"):
        read(kind, "gs://bucket")


def test_a_source_that_lacks_a_method_is_refused_before_anything_is_read(monkeypatch):
    class HalfSource:
        def __init__(self, config):
            raise AssertionError("not even made")

        def read(self, shard):
            yield

    monkeypatch.setitem(SOURCES, "half", HalfSource)
    message = (
        r"class HalfSource of SOURCES\['half'\] lacks the method list_shards\(\);"
        r" it has read\(shard\), wanted read\(shard, drops\)"
        r" .*data.sources.source.Source\)"
    )
    with pytest.raises(TypeError, match=message):
        list_shards(SourceConfig("half", "x"))
    with pytest.raises(TypeError, match=message):
        CorpusConfig("x", 0, SourceConfig("half", "x"), RuleBounds(), 100)


def test_batches_are_bounded_by_rows_and_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.source.BATCH_BYTES", 1000)
    images = [b"x" * 300] * 7
    texts = [f"text {n}" for n in range(7)]
    pq.write_table(pa.table({"image": images, "alt_text": texts}), tmp_path / "a")
    config = SourceConfig("parquet", str(tmp_path / "a"))
    (shard,) = list_shards(config)
    batches = list(read_shard(config, shard, collections.Counter()))
    assert [len(batch) for batch in batches] == [4, 3]
    found = [text for batch in batches for text in batch["alt_text"].to_pylist()]
    assert found == texts
