"""A corpus with synthetic captions beside the texts of its source."""

import csv
import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from align_jax.errors import InputError
from data.corpus.build_files import format_report
from data.corpus.builder import Build, build
from data.corpus.captions import check_captions, normalise_captions
from data.corpus.config import CaptionConfig, CorpusConfig, EngineConfig
from data.corpus.ingest import identify
from data.corpus.rules import RuleBounds
from data.doctor.__main__ import diagnose
from data.sources.config import SourceConfig
from tests import tiny
from tests.data.spark import SPARK
from tests.input.captions_test import texts

IDS = [identify(tiny.draw(name, 3)) for name in tiny.NAMES]
# Pictures 0 to 11; number 3 is dropped by a rule, and the captions of 4 have no text.
CAPTIONS = {
    IDS[0]: ["A Red  Half", "left of nothing", "a red half"],
    IDS[1]: ["on the right"],
    IDS[3]: ["dropped"],
    IDS[4]: ["", None, " \n"],
    IDS[5]: None,
    "ab" * 16: ["of no picture"],
}
BAD_TEXT = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
WRITTEN = {IDS[6]: 'six, "quoted"\nin two lines', IDS[7]: "seven"}


@pytest.fixture
def config(tmp_path):
    rows = [
        {"image": tiny.draw(name, 3), "alt_text": f"{name} side", "language": "en"}
        for name in tiny.NAMES
    ]
    rows.append({**rows[0], "alt_text": "Another text here"})
    rows[3]["language"] = "de"
    for n in (0, 1):
        pq.write_table(pa.Table.from_pylist(rows[n::2]), tmp_path / f"raw{n}.parquet")
    folder = tmp_path / "captions"
    folder.mkdir()
    kinds = (pa.string(), pa.list_(pa.string()))
    columns = [
        pa.array([*part], kind)
        for part, kind in zip((CAPTIONS, CAPTIONS.values()), kinds, strict=True)
    ]
    pq.write_table(pa.table(columns, names=["id", "machine"]), folder / "a.parquet")
    with (folder / "b.csv").open("w", newline="") as file:
        rows = [(name, "x", text) for name, text in WRITTEN.items()]
        csv.writer(file).writerows([("id", "other", "machine"), *rows])
    return CorpusConfig(
        name="tiny",
        seed=0,
        ingest=SourceConfig("parquet", str(tmp_path / "raw*.parquet")),
        rules=RuleBounds(min_shorter_side=8),
        captions=CaptionConfig(str(folder), "id", "machine"),
        vocabulary_size=300,
        engine=EngineConfig(workers=1),
        shards=2,
    )


def records_of(folder):
    dataset = tfds.builder_from_directory(str(folder / "records")).as_dataset("train")
    for row in dataset.as_numpy_iterator():
        captions = [caption.decode() for caption in row["synthetic"]]
        yield row["image_id"].decode(), row["text"].decode(), captions


EXPECTED = {
    IDS[0]: ["a red half", "left of nothing"],
    IDS[1]: ["on the right"],
    IDS[6]: ['six, "quoted" in two lines'],
    IDS[7]: ["seven"],
}


def check(folder):
    records = [*records_of(folder)]
    assert len(records) == 12
    for name, text, captions in records:
        assert captions == EXPECTED.get(name, []), text
    report = json.loads((folder / "report.json").read_text())
    assert report["captions"] == {
        "rows": 8,
        "empty": 2,
        "unknown": 1,
        "pictures": 4,
        "without": 7,
        "captions": 5,
    }
    words = (folder / "records" / "vocabulary.txt").read_text().split()
    assert "nothing" in words
    assert "dropped" not in words
    return report


def test_captions_lie_beside_the_texts_and_training_draws_both(config, tmp_path):
    build(config, tmp_path / "corpus")
    report = check(tmp_path / "corpus")
    said = "captions: 5 of 4 kept pictures; 7 have none; 1 ids are unknown"
    assert said in format_report(report)
    assert diagnose(tmp_path / "corpus") == []
    weights = {"text": 0.5, "synthetic": 0.5}
    drawn = texts(
        str(tmp_path / "corpus" / "records"), 0, 20, format="tfds", captions=weights
    )
    drawn = {text.decode() for step in drawn for text in step}
    captions = {caption for some in EXPECTED.values() for caption in some}
    assert captions <= drawn
    assert {f"{name} side" for n, name in enumerate(tiny.NAMES) if n != 3} <= drawn


def test_tables_that_change_during_a_build_are_refused(config, tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Build, "distinct", killed)
        with pytest.raises(KeyboardInterrupt):
            build(config, tmp_path / "corpus")
    with (tmp_path / "captions" / "b.csv").open("a") as file:
        file.write("new,x,more\r\n")
    with pytest.raises(InputError, match=r"has changed since .*captions.json lists"):
        build(config, tmp_path / "corpus")


@pytest.mark.spark
def test_spark_joins_the_same_captions(config, tmp_path):
    for name, engine in (("plain", config.engine), ("spark", SPARK)):
        build(dataclasses.replace(config, engine=engine), tmp_path / name)
        check(tmp_path / name)
    for path in (tmp_path / "plain" / "records").glob("*tfrecord*"):
        other = tmp_path / "spark" / "records" / path.name
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["c.parquet", "c.csv"])
def test_an_id_that_occurs_twice_is_refused(config, tmp_path, name):
    path = tmp_path / "captions" / name
    if path.suffix == ".csv":
        path.write_text(f"machine,id\nagain,{IDS[1]}\n")
    else:
        pq.write_table(pa.table({"id": [IDS[1]], "machine": ["again"]}), path)
    with pytest.raises(InputError, match=rf"has the id '{IDS[1]}' more than once"):
        build(config, tmp_path / "corpus")
    assert not (tmp_path / "corpus" / "records").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", b"id,text\n", r"lacks the columns \['machine'\]"),
        ("c.csv", b"id,machine\n" + IDS[2].encode() + b",\xff\n", "is no readable CSV"),
        ("c.csv", b"id,machine\n,x\n", "has a row without 'id'"),
        ("c.csv", b"", "is no readable CSV"),
        ("c.parquet", b"junk", "is not a Parquet file"),
        ("c.parquet", {"id": [1], "machine": ["x"]}, "'id' of .* is int64; wanted te"),
        (
            "c.parquet",
            {"id": ["a"], "machine": [[1]]},
            "'machine' of .*; wanted texts or",
        ),
        ("c.parquet", {"id": [["a"]], "machine": ["x"]}, "'id' of .*; wanted texts"),
        ("c.parquet", {"id": ["a"], "machine": BAD_TEXT}, "c.parquet is damaged"),
        ("c.parquet", {"id": BAD_TEXT, "machine": ["a"]}, "c.parquet is damaged"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(config, tmp_path, name, content, message):
    path = tmp_path / "captions" / name
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        build(config, tmp_path / "corpus")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "corpus" / "records").exists()


def test_columns_of_other_layouts_are_read(tmp_path):
    """Dictionaries, large texts, texts without a copy, and columns of nulls."""
    encoded = pa.array(["a red half"]).dictionary_encode()
    for kind, captions in enumerate(
        (
            encoded,
            pa.array([["a red half"]], pa.large_list(pa.large_string())),
            pa.array(["a red half"], pa.string_view()),
            pa.nulls(1),
        )
    ):
        path = tmp_path / f"{kind}.parquet"
        ids = pa.array([IDS[0]]).dictionary_encode()
        pq.write_table(pa.table({"id": ids, "machine": captions}), path)
        named = CaptionConfig(str(path), "id", "machine")
        check_captions(named)
        normalise_captions(named, path, kind, tmp_path, 100)
        (row,) = pq.read_table(tmp_path / f"captions/{kind:05}.parquet").to_pylist()
        expected = [] if captions.null_count else ["a red half"]
        assert row == {"image_id": IDS[0], "captions": expected}


@pytest.mark.parametrize("name", ["text", "key", "a b", ""])
def test_a_feature_needs_a_free_name(name):
    with pytest.raises(InputError, match=r"config.captions.feature is '.*'; wanted"):
        CaptionConfig(feature=name)
