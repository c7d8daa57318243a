import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from data.corpus.builder import Build, build
from data.corpus.config import CorpusConfig, EngineConfig
from data.corpus.ingest import PAIRS, identify, ingest_shard, normalise, shuffle_key
from data.corpus.rules import RuleBounds
from data.sources.config import SourceConfig
from data.sources.source import list_shards
from tests import tiny


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


def config_of(path, kind="jsonl", **engine):
    return CorpusConfig(
        name="tiny",
        seed=0,
        ingest=SourceConfig(kind, str(path)),
        rules=RuleBounds(min_shorter_side=0, languages=(), min_unigrams=1),
        vocabulary_size=300,
        engine=EngineConfig(workers=1, **engine),
        shards=1,
    )


def test_a_source_without_pairs_is_refused_with_the_reasons(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"alt_text": "a red house"}\n[]\n{}\n')
    reasons = "1 x bad json, 1 x no image and no url, 1 x no text"
    for _ in range(2):  # also where the shard is written already
        with pytest.raises(InputError, match=rf"a\.jsonl gave no pairs: {reasons}"):
            build(config_of(tmp_path / "a.jsonl"), tmp_path / "corpus")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(InputError, match="gave no pairs: its files are empty"):
        build(config_of(tmp_path / "a.jsonl"), tmp_path / "other")


def test_folders_may_have_brackets_and_the_report_accounts_for_every_row(tmp_path):
    folder = tmp_path / "set [1]*?"
    folder.mkdir()
    lines = ["[]"]
    for n in range(4):
        (folder / f"{n}.png").write_bytes(tiny.draw(tiny.NAMES[n], 3))
        lines.append(f'{{"image": "{n}.png", "alt_text": "a drawing number {n}"}}')
    (folder / "a.jsonl").write_text("\n".join(lines))
    for number, path in enumerate([folder, folder / "a.jsonl", folder / "*.jsonl"]):
        build(config_of(path), folder / f"corpus{number}")
        report = json.loads((folder / f"corpus{number}/report.json").read_text())
        assert (report["rows_in"], report["pairs_raw"]) == (5, 4)
        assert report["drops"] == {"bad json": 1}


def test_a_build_whose_drops_were_lost_ends_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "0.png").write_bytes(tiny.draw(tiny.NAMES[0], 3))
    line = '{"image": "0.png", "alt_text": "a drawing"}\n[]\n'
    (tmp_path / "a.jsonl").write_text(line)
    monkeypatch.setattr(Build, "keep", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(config_of(tmp_path), tmp_path / "corpus")
    monkeypatch.undo()
    (tmp_path / "corpus/stages/drops/00000.json").write_text("{}")
    with pytest.raises(InputError, match="gave 2 rows, but there are 1 pairs"):
        build(config_of(tmp_path), tmp_path / "corpus")
