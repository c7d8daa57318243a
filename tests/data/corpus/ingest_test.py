import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpus.ingest import PAIRS, identify, ingest_shard, normalise, shuffle_key
from data.sources.config import SourceConfig
from data.sources.source import list_shards


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Red\t APPLE \n", "red apple"),
        ("ﬁve ①", "five 1"),
        ("Straße", "strasse"),
        ("a\0b\u200bc", "a b c"),
        ("ΜΆΪΟΣ", "μάϊοσ"),
        ("猫　犬", "猫 犬"),
        ("", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalise(text, 100) == expected
    assert normalise(expected, 100) == expected


def test_a_long_text_is_cut():
    assert normalise("abc def", 4) == "abc"


def test_keys_depend_on_seed_image_and_text_and_fit_64_bits():
    keys = {
        shuffle_key(s, i, t) for s in (0, 1) for i in ("a", "b") for t in ("x", "y")
    }
    assert len(keys) == 8
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert shuffle_key(0, "a", "x") == shuffle_key(0, "a", "x")


def test_pairs_and_pictures_are_written(tmp_path):
    table = {
        "image": [b"one", b"one", None, None],
        "url": [None, None, "http://x/y.png", None],
        "alt_text": ["A cat", "Cat!", None, "nothing to show"],
        "language": ["en", "en", None, None],
        "source": ["x"] * 4,
    }
    pq.write_table(pa.table(table), tmp_path / "raw.parquet")
    source = SourceConfig("parquet", str(tmp_path / "raw.parquet"))
    (shard,) = list_shards(source)
    stages = tmp_path / "stages"
    for _ in range(2):  # the second call finds the files
        written = ingest_shard(
            source, shard, seed=0, max_characters=100, stages=stages, index=7
        )
        assert written == 3
    pairs = pq.read_table(stages / "pairs" / "00007.parquet")
    assert pairs.schema == PAIRS
    assert pairs["text"].to_pylist() == ["a cat", "cat!", ""]
    assert pairs["alt_text"].to_pylist() == ["A cat", "Cat!", ""]
    addressed = identify(b"http://x/y.png")
    assert pairs["image_id"].to_pylist() == [identify(b"one")] * 2 + [addressed]
    images = pq.read_table(stages / "images" / "00007.parquet")
    assert images["image"].to_pylist() == [b"one", None]
    assert images["shard"].to_pylist() == [7, 7]
    drops = (stages / "drops" / "00007.json").read_text()
    assert json.loads(drops) == {"no image and no url": 1}
    assert not list(stages.rglob("*.tmp"))
