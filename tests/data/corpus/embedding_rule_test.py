"""A corpus built with the rule that compares embeddings, through all its stages."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

import align_jax
from data.corpus import builder, score
from data.corpus.build_files import format_report
from data.corpus.builder import Build, build
from data.corpus.config import EngineConfig
from data.corpus.embedding_rule import read_sample
from data.corpus.engines import DuckDB
from data.corpus.ingest import identify
from data.pictures import embeddings
from tests import tiny
from tests.data.corpus.copied_pictures import (
    COPIES,
    CROPPED,
    MAX_COSINE,
    MIRRORED,
    killed_at,
    large,
    make_config,
    run_here,
)
from tests.data.corpus.corpus_test import draw, records_of
from tests.data.spark import SPARK


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(
        tmp_path_factory.mktemp("model") / "model", max_pixels=230 * 230
    )


@pytest.fixture(scope="module")
def config(model, tmp_path_factory):
    return make_config(model, tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def built(config, tmp_path_factory):
    """The folder of the corpus; a separate process embedded the pictures."""
    folder, run = tmp_path_factory.mktemp("built") / "corpus", embeddings._run

    def check_here(model, arguments):
        (run_here if arguments == ["--check"] else run)(model, arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "_run", check_here)
        build(config, folder)
    return folder


def scores_of(folder):
    rows = pq.read_table(folder / "stages" / "scores").to_pylist()
    return {row["image_id"]: row for row in rows}


def kept_of(folder):
    return pq.read_table(folder / "stages" / "kept.parquet").sort_by("key").to_pylist()


def assert_same(folder, built):
    assert records_of(folder) == records_of(built)
    assert_same_stages(folder, built)


def assert_same_stages(folder, built):
    assert kept_of(folder) == kept_of(built)
    for stage in ("scores", "embeddings"):
        for path in (built / "stages" / stage).iterdir():
            other = folder / "stages" / stage / path.name
            assert other.read_bytes() == path.read_bytes(), path


def test_copies_of_evaluation_images_are_dropped_and_all_else_is_kept(built):
    scores = scores_of(built)
    assert identify(draw(50)) not in scores
    assert len(scores) == 37
    near = {name for name, row in scores.items() if row["near_embedding"]}
    assert near == {identify(copy) for copy in COPIES}
    assert not any(row["near_duplicate"] for row in scores.values())
    kept = pq.read_table(built / "stages" / "kept.parquet")["image_id"].to_pylist()
    assert set(kept) == scores.keys() - near
    report = json.loads((built / "report.json").read_text())
    rules = {rule["rule"]: rule for rule in report["rules"]}
    assert [*rules][-3:] == ["pornographic", "near_duplicate", "near_embedding"]
    assert rules["near_embedding"] == {
        "rule": "near_embedding",
        "breaks": 2,
        "first": 2,
    }
    assert rules["near_duplicate"]["breaks"] == 0
    assert [row["rule"] for row in report["off"]] == ["pornographic"]
    assert report["not_embedded"] == {"pictures": 1, "evaluation_images": 1}
    assert "NOT COMPARED: 1 evaluation images could not" in format_report(report)
    page = (built / "report.html").read_text()
    assert "Likeness to the nearest evaluation image" in page
    assert "1 pictures could not be embedded" in page


def test_scores_hold_the_cosine_with_the_nearest_evaluation_image(model, built):
    """With so few pictures, all images share all clusters, so all are compared."""
    scores = scores_of(built)
    pictures = [draw(i) for i in range(34)] + COPIES
    encode = align_jax.load(model).encode_images
    cosines = encode(pictures) @ encode([draw(MIRRORED), draw(CROPPED)]).T
    found = [scores[identify(picture)]["cosine"] for picture in pictures]
    np.testing.assert_allclose(found, cosines.max(1).clip(0), atol=1e-5)
    assert scores[identify(large())]["cosine"] is None
    # No cosine is so near the bound that rounding could move it across.
    assert np.abs(np.array(found) - MAX_COSINE).min() > 1e-3


def test_files_to_embed_are_removed_and_embeddings_kept(built):
    assert not (built / "stages" / "to_embed").exists()
    names = {path.name for path in (built / "stages" / "embeddings").iterdir()}
    wanted = {f"{i:05}.parquet" for i in range(3)}
    assert names == wanted | {"evaluation.parquet", "model.json"}


def test_two_workers_write_the_same_bytes(config, built, tmp_path, here, monkeypatch):
    # corpus_test proves that the records do not depend on the number of workers.
    monkeypatch.setattr(Build, "records", lambda self, report: None)
    config = dataclasses.replace(config, engine=EngineConfig(workers=2))
    build(config, tmp_path / "corpus")
    assert len(here) == 2  # a check and one run, for any number of shards
    assert_same_stages(tmp_path / "corpus", built)


@pytest.mark.spark
def test_spark_drops_the_same_pictures(config, built, tmp_path, here):
    build(dataclasses.replace(config, engine=SPARK), tmp_path / "corpus")
    assert_same(tmp_path / "corpus", built)


def test_a_build_killed_while_it_embeds_goes_on_with_the_next_shard(
    config, built, tmp_path, here
):
    folder = tmp_path / "corpus"
    with killed_at("00001.parquet"), pytest.raises(KeyboardInterrupt):
        build(config, folder)
    first = folder / "stages" / "embeddings" / "00000.parquet"
    written = first.stat().st_mtime_ns
    assert not (first.parent / "00001.parquet").exists()
    assert not (folder / "stages" / "near_duplicates.npz").exists()
    build(config, folder)
    assert first.stat().st_mtime_ns == written
    assert_same(folder, built)


def test_a_build_killed_between_two_shards_of_scores_does_not_embed_again(
    config, built, tmp_path, here, monkeypatch
):
    def killed(index, **arguments):
        if index == 1:
            raise KeyboardInterrupt
        return score.score_shard(index=index, **arguments)

    folder = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        patch.setattr(builder, "score_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            build(config, folder)
    assert {path.name for path in (folder / "stages" / "scores").iterdir()} == {
        "00000.parquet"
    }
    before = len(here)
    build(config, folder)
    assert [*map(len, here[before:])] == [1]  # only the check
    assert_same(folder, built)


def test_a_small_sample_for_the_clusters_is_one_of_the_lowest_names(
    config, built, tmp_path
):
    shutil.copytree(built, tmp_path / "copy")
    stages = Build(config, tmp_path / "copy")
    scores = scores_of(built)
    wanted = [name for name in sorted(scores) if scores[name]["cosine"] is not None]
    folder = stages.folder / "embeddings"
    everything = read_sample(stages, stages.table("survivors"), folder, 1000)
    assert len(everything) == len(wanted) == 36
    by_name = dict(zip(wanted, everything, strict=True))
    few = read_sample(stages, stages.table("survivors"), folder, 7)
    lowest = [name for name in sorted(scores)[:7] if name in by_name]
    np.testing.assert_array_equal(few, [by_name[name] for name in lowest])
    stages.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_models_take_one_thread_where_there_are_many_processes(
    config, built, tmp_path, here, monkeypatch, workers
):
    shutil.copytree(built, tmp_path / "copy")
    stages = Build(
        dataclasses.replace(config, engine=EngineConfig(workers=workers)),
        tmp_path / "copy",
    )
    (tmp_path / "copy" / "stages" / "kept.parquet").unlink()
    given = []
    monkeypatch.setattr(DuckDB, "map", lambda self, tasks, *more: given.extend(tasks))
    stages.score()
    stages.close()
    threads = [task.keywords["threads"] for task in given]
    assert threads == [None if workers == 1 else 1] * 3
