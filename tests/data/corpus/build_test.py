import dataclasses
import json
import pathlib
import subprocess
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from ibis.backends.duckdb import Backend

from align_jax import places
from align_jax.config import leave_out, read_config, stored_fields
from align_jax.errors import InputError, run_command
from align_jax.input.tokenizer import open_tokenizer
from data import build as command
from data.corpus import builder, vocabulary
from data.corpus.builder import build
from data.corpus.config import CorpusConfig, EngineConfig, PictureConfig
from data.corpus.engines import ENGINES, DuckDB
from data.corpus.ingest import identify
from data.corpus.rules import RuleBounds
from data.doctor.__main__ import diagnose
from data.sources.config import SourceConfig
from tests import tiny

TEXTS = [f"{name} side {n}" for n, name in enumerate(tiny.NAMES)]


@pytest.fixture
def config(tmp_path):
    rows = [
        {"image": tiny.draw(name, 3), "alt_text": text, "language": "en"}
        for name, text in zip(tiny.NAMES, TEXTS, strict=True)
    ]
    rows.append(rows[0])  # a repeated pair
    rows.append({**rows[1], "alt_text": "rot links eins", "language": "de"})
    rows.append({"image": b"broken", "alt_text": "a broken file", "language": "en"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw.parquet")
    held_out = {"image_id": [identify(tiny.draw(tiny.NAMES[2], 3))]}
    pq.write_table(pa.table(held_out), tmp_path / "held_out.parquet")
    return CorpusConfig(
        name="tiny",
        seed=0,
        ingest=SourceConfig("parquet", str(tmp_path / "raw.parquet")),
        rules=RuleBounds(min_shorter_side=8),
        evaluation_images=str(tmp_path / "held_out.parquet"),
        vocabulary_size=300,
        engine=EngineConfig(workers=1),
        shards=3,
    )


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_raw_pairs_become_a_dataset_that_tfds_opens(config, tmp_path):
    build(config, tmp_path / "corpus")
    records = tmp_path / "corpus" / "records"
    dataset = tfds.builder_from_directory(str(records)).as_dataset(split="train")
    found = {row["text"].decode(): row for row in dataset.as_numpy_iterator()}
    wanted = dict(zip(TEXTS, tiny.NAMES, strict=True))
    del wanted[TEXTS[2]]  # its picture is an evaluation image
    assert set(found) == set(wanted)
    for text, name in wanted.items():
        assert found[text]["image_id"].decode() == identify(tiny.draw(name, 3))
        assert found[text]["image"].shape == (12, 12, 3)
    keys = [row["key"] for row in dataset.as_numpy_iterator()]
    assert keys == sorted(keys)

    manifest = json.loads((records / "manifest.json").read_text())
    assert (manifest["pairs_raw"], manifest["pairs_in"]) == (15, 14)
    assert (manifest["pairs_kept"], manifest["images_kept"]) == (11, 11)
    dropped = {r["rule"]: r["first"] for r in manifest["rules"] if r["first"]}
    assert dropped == {"other_language": 1, "undecodable": 1, "evaluation_image": 1}
    assert manifest["refused_pictures"] == {"not a picture": 1}
    assert [shard["records"] for shard in manifest["shards"]] == [3, 4, 4]
    vocabulary = (records / "vocabulary.txt").read_text().split()
    assert {"red", "left", "side"} <= set(vocabulary)
    assert manifest["vocabulary_size"] == len(vocabulary)


def test_building_twice_gives_the_same_bytes(config, tmp_path):
    for name in ("one", "two"):
        build(config, tmp_path / name)
    one, two = (files_of(tmp_path / name / "records") for name in ("one", "two"))
    assert one == two


def test_a_build_can_learn_sentencepiece_s_pieces(config, tmp_path):
    pieces = dataclasses.replace(config, vocabulary_kind="unigram")
    build(pieces, tmp_path / "corpus")
    records = tmp_path / "corpus" / "records"
    manifest = json.loads((records / "manifest.json").read_text())
    assert manifest["vocabulary_file"] == "tokenizer.model"
    assert "sentencepiece" in manifest["versions"]
    tokenizer = open_tokenizer(str(records / "tokenizer.model"), 8)
    assert tokenizer.size == manifest["vocabulary_size"] <= 300
    assert diagnose(tmp_path / "corpus") == []
    with pytest.raises(InputError, match="vocabulary_kind is 'words'; known: wordp"):
        dataclasses.replace(config, vocabulary_kind="words")


def test_array_record_files_hold_the_same_records_for_grain(config, tmp_path):
    build(config, tmp_path / "plain")
    arrays = dataclasses.replace(config, record_format="array_record")
    for name in ("corpus", "again"):
        build(arrays, tmp_path / name)
    records = tmp_path / "corpus" / "records"
    assert files_of(records) == files_of(tmp_path / "again" / "records")
    source = tfds.builder_from_directory(str(records)).as_data_source(split="train")
    plain = tfds.builder_from_directory(str(tmp_path / "plain" / "records"))
    expected = list(plain.as_dataset(split="train").as_numpy_iterator())
    assert len(source) == len(expected) == 11
    for mine, theirs in zip(source, expected, strict=True):
        for feature in ("key", "text", "image_id"):
            assert mine[feature] == theirs[feature]
        assert mine["image"].shape[:2] == theirs["image"].shape[:2]
    assert diagnose(tmp_path / "corpus") == []


def test_a_killed_build_goes_on_and_a_finished_one_does_nothing(
    config, tmp_path, monkeypatch, capsys
):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(vocabulary, "learn_vocabulary", killed)
    with pytest.raises(KeyboardInterrupt):
        build(config, tmp_path / "corpus")
    stages = tmp_path / "corpus" / "stages"
    before = {path: path.stat().st_mtime_ns for path in stages.glob("*.parquet")}
    assert len(before) == 8
    assert not (tmp_path / "corpus" / "records").exists()

    monkeypatch.undo()
    monkeypatch.setattr(builder, "write_page", None)  # a page that fails
    build(config, tmp_path / "corpus")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (tmp_path / "corpus" / "records" / "manifest.json").exists()
    warning = "report.html is not written: TypeError: "
    assert capsys.readouterr().err.count(warning) == 1
    pathlib.Path(config.ingest.path).unlink()
    build(config, tmp_path / "corpus")
    assert "complete: nothing to do" in capsys.readouterr().out


def test_another_config_or_somebody_elses_folder_is_refused(config, tmp_path):
    build(config, tmp_path / "corpus")
    before = files_of(tmp_path / "corpus" / "records")
    other = CorpusConfig(**{**vars(config), "seed": 1})
    with pytest.raises(InputError, match=r"another config .*config\.seed: 0 -> 1"):
        build(other, tmp_path / "corpus")
    assert files_of(tmp_path / "corpus" / "records") == before
    path = tmp_path / "corpus" / "config.json"  # now of a version without some fields
    earlier = leave_out(places.read_json(path), ["max_characters", "pictures.clusters"])
    places.write_json(path, earlier)
    build(config, tmp_path / "corpus")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    with pytest.raises(InputError, match=r"not empty and holds no config\.json"):
        build(config, tmp_path / "mine")


def test_an_empty_corpus_is_refused_with_the_counts(config, tmp_path):
    strict = CorpusConfig(**{**vars(config), "rules": RuleBounds()})
    with pytest.raises(InputError, match=r"no pair of 14 is left .*shorter_side 12"):
        build(strict, tmp_path / "corpus")
    assert not (tmp_path / "corpus" / "records").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"naem": "x"}, "config has no field 'naem'; did you mean 'name'"),
        ({"name": "x"}, "config lacks the field 'seed'"),
        ({"name": 3, "seed": 0}, "config.name is 3 .int.; wanted str"),
        ({"name": "x", "seed": True}, "config.seed is True .bool.; wanted int"),
        (
            {"name": "x", "seed": 0, "ingest": 3},
            "config.ingest is 3; wanted a sub-dict",
        ),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        read_config(CorpusConfig, fields)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("no pairs"), 2, "x: no pairs"),
        (ModuleNotFoundError("no", name="ibis"), 2, "x: package 'ibis' is missing"),
        (KeyboardInterrupt(), 130, "x: interrupted"),
    ],
)
def test_a_command_ends_in_one_line(error, code, line, capsys):
    def command():
        raise error

    assert run_command("x", command) == code
    printed = capsys.readouterr().err
    assert printed.startswith(line)
    assert printed.count("\n") == 1


def test_the_command_names_an_unknown_field(monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "data.build",
            "--config=configs/corpus_quickstart.py",
            "--workdir=unused",
            "--config.rules.min_unigram=1",
        ],
    )
    assert run_command("data.build", command.main) == 2
    assert (
        "no field 'min_unigram'; did you mean 'min_unigrams'" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": -1}, "config.shards is -1; wanted 0 or more"),
        (
            {"record_format": "tar"},
            "record_format is 'tar'; known: tfrecord, array_rec",
        ),
        ({"max_characters": 0}, "config.max_characters is 0; wanted 1 or more"),
    ],
)
def test_values_out_of_range_are_refused(config, change, message):
    with pytest.raises(InputError, match=message):
        read_config(CorpusConfig, stored_fields(config) | change)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (EngineConfig, {"memory_limit": "4 potatoes"}, "is '4 potatoes'; wanted a num"),
        (EngineConfig, {"workers": -1}, "workers is -1; wanted 0 or more"),
        (PictureConfig, {"max_hash_distance": 65}, "is 65; wanted -1 to 64"),
    ],
)
def test_parts_out_of_range_are_refused(cls, fields, message):
    with pytest.raises(InputError, match=message):
        read_config(cls, fields)


def test_an_unknown_engine_is_refused(config, tmp_path):
    config = dataclasses.replace(config, engine=EngineConfig(kind="polars"))
    with pytest.raises(InputError, match="kind is 'polars'; known: duckdb, spark"):
        build(config, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_an_engine_that_lacks_a_method_is_refused_before_anything_is_written(
    config, tmp_path, monkeypatch
):
    class HalfEngine(DuckDB):
        save_split = None

        def map(self, tasks, label):
            return 0

    monkeypatch.setitem(ENGINES, "half", HalfEngine)
    config = dataclasses.replace(config, engine=EngineConfig(kind="half"))
    message = (
        r"class HalfEngine of ENGINES\['half'\] lacks the method"
        r" save_split\(table, path, by, label\);"
        r" it has map\(tasks, label\), wanted map\(tasks, label, unit\)"
    )
    with pytest.raises(TypeError, match=message):
        build(config, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("name", ["my-corpus", "a/b", "Bilder ä", ""])
def test_a_name_that_tfds_cannot_read_is_refused(config, name):
    with pytest.raises(InputError, match=r"config\.name is '.*'; wanted letters"):
        dataclasses.replace(config, name=name)


def test_no_progress_bar_is_set_where_none_is_shown(tmp_path, monkeypatch):
    run = Backend.raw_sql

    def refuse(self, query, **kwargs):
        """As DuckDB does in Jupyter without ipywidgets, for both values."""
        if "progress_bar" in str(query):
            raise duckdb.InvalidInputException("requires ipywidgets")
        return run(self, query, **kwargs)

    monkeypatch.setattr(Backend, "raw_sql", refuse)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    engine = DuckDB(EngineConfig(workers=1), tmp_path)
    engine.close()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(duckdb.InvalidInputException):
        DuckDB(EngineConfig(workers=1), tmp_path)


def test_an_unknown_model_is_refused_before_anything_is_written(config, tmp_path):
    pictures = PictureConfig(nsfw_model="nudenet")
    config = dataclasses.replace(config, pictures=pictures)
    with pytest.raises(InputError, match="nsfw_model is 'nudenet'; known: open_nsfw"):
        build(config, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_languages_must_be_a_list():
    with pytest.raises(
        InputError, match=r"rules\.languages is 'en' \(str\); wanted tuple"
    ):
        read_config(RuleBounds, {"languages": "en"}, "config.rules")
    assert read_config(RuleBounds, {"languages": ["de"]}).languages == ("de",)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": ["x"]}, r"lacks the columns \['image_id'\]"),
        ({"image_id": [3]}, "column 'image_id' of .* is int64; wanted string"),
        (None, "is not a Parquet file"),
    ],
)
def test_a_wrong_evaluation_table_is_refused_before_anything_is_written(
    config, tmp_path, table, message
):
    path = tmp_path / "held_out.parquet"
    path.write_text("junk") if table is None else pq.write_table(pa.table(table), path)
    with pytest.raises(InputError, match=message):
        build(config, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_a_file_or_a_damaged_config_in_place_of_a_workdir_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; wanted a folder"):
        build(config, tmp_path / "file")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        build(config, tmp_path / "corpus")


@pytest.mark.parametrize("package", ["ml_collections", "pyarrow", "ibis"])
def test_a_missing_package_ends_the_command_in_one_line(package):
    program = (
        f"import runpy, sys; sys.modules[{package!r}] = None;"
        " sys.argv = ['build', '--config=configs/corpus_quickstart.py', '--workdir=x'];"
        " runpy.run_module('data.build', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"data.build: package {package!r} is missing")
    assert done.stderr.count("\n") == 1
