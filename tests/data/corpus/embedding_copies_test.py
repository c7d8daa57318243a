"""Near-copies by embedding, beside a comparison of every two pictures."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import align_jax
from align_jax.errors import InputError
from data.corpus.build_files import format_report
from data.corpus.builder import Build, build
from data.corpus.config import CopiesConfig, CorpusConfig, EmbeddingConfig, EngineConfig
from data.corpus.embedding_copies import find_near
from data.corpus.ingest import identify
from data.corpus.rules import RuleBounds
from data.pictures import near_duplicates
from data.sources.config import SourceConfig
from tests import tiny
from tests.data.corpus import copied_pictures
from tests.data.corpus.copied_pictures import large
from tests.data.corpus.corpus_test import draw, resized
from tests.data.spark import SPARK

BOUND = 0.995
# Pictures, larger copies of some, and one that the model cannot read.
PICTURES = [*map(draw, range(40)), *(resized(draw(n)) for n in (3, 8, 21)), large()]


def test_the_first_near_vector_is_that_of_a_comparison_of_all(monkeypatch):
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, 6))
    vectors = centres[random.integers(0, 40, 500)] + random.normal(size=(500, 6)) / 9
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors.astype(np.float32)
    expected = {}
    for row, vector in enumerate(vectors):
        near = [n for n in range(row) if float(vector @ vectors[n]) > 0.97]
        if near:
            expected[row] = near[0]
    assert 100 < len(expected) < 480
    for rows, columns in ((1024, 8192), (64, 100), (7, 3)):
        monkeypatch.setattr("data.corpus.embedding_copies.ROWS", rows)
        monkeypatch.setattr("data.corpus.embedding_copies.COLUMNS", columns)
        dropped, first = find_near(vectors, 0.97)
        assert dict(zip(dropped.tolist(), first.tolist(), strict=True)) == expected
    dropped, first = find_near(np.zeros((0, 6), np.float32), 0.5)
    assert len(dropped) == len(first) == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    return tiny.write_model(folder, max_pixels=240 * 240)


@pytest.fixture(scope="module")
def config(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    rows = [(picture, f"red text {n}") for n, picture in enumerate(PICTURES)]
    copied_pictures.write_shards(rows, folder)
    return CorpusConfig(
        name="copied",
        seed=3,
        ingest=SourceConfig("parquet", str(folder / "*.parquet")),
        rules=RuleBounds(),
        vocabulary_size=100,
        copies=CopiesConfig(max_cosine=BOUND),
        embeddings=EmbeddingConfig(model),
        engine=EngineConfig(workers=1, embedding_batch_size=4),
        shards=1,
    )


@pytest.fixture(scope="module")
def embeddings(model):
    """The embedding of each picture, by the model itself, and its size."""
    readable = [picture for picture in PICTURES if picture != large()]
    found = align_jax.load(model, batch_size=4).encode_images(readable)
    area = [201 * 201] * 40 + [230 * 230] * 3
    return {
        identify(picture): (vector, size)
        for picture, vector, size in zip(readable, found, area, strict=True)
    }


def oracle(embeddings, clusters=None):
    """Returns each dropped picture and the best one near it.

    Only pictures that share one of their clusters are compared, if these are given.
    """
    order = sorted(embeddings, key=lambda name: (-embeddings[name][1], name))
    found = {}
    for place, name in enumerate(order):
        for better in order[:place]:
            cosine = embeddings[name][0] @ embeddings[better][0]
            assert abs(cosine - BOUND) > 1e-6  # so rounding does not decide
            shared = clusters is None or clusters[name] & clusters[better]
            if cosine > BOUND and shared:
                found.setdefault(name, better)
    return found


def copies_of(folder):
    rows = pq.read_table(folder / "stages" / "embedding_copies.parquet").to_pylist()
    return {row["image_id"]: row["better"] for row in rows}


def kept_of(folder):
    kept = pq.read_table(folder / "stages" / "kept.parquet")
    return {*kept["image_id"].to_pylist()}


def test_one_cluster_gives_the_copies_of_a_comparison_of_all(
    config, embeddings, tmp_path, here
):
    build(config, tmp_path)
    expected = oracle(embeddings)
    planted = {identify(draw(n)): identify(resized(draw(n))) for n in (3, 8, 21)}
    assert expected.items() >= planted.items()
    assert len(expected) < 30
    assert copies_of(tmp_path) == expected
    assert kept_of(tmp_path) == {*map(identify, PICTURES)} - expected.keys()
    report = json.loads((tmp_path / "report.json").read_text())
    rule = {"rule": "near_copy_embedding"}
    counts = dict.fromkeys(("breaks", "first"), len(expected))
    assert report["rules"][-1] == rule | counts
    said = f"copies by embedding: {len(expected)} pictures"
    assert said in format_report(report)
    assert "Copies within the corpus" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "stages" / "clusters").exists()


def test_only_pictures_of_one_cluster_are_compared_for_any_number_of_workers(
    config, embeddings, tmp_path, here, monkeypatch
):
    monkeypatch.setattr(near_duplicates, "POINTS_PER_CLUSTER", 4)
    monkeypatch.setattr(Build, "records", lambda self, report: None)
    expected = []
    for workers in (1, 2):
        engine = dataclasses.replace(config.engine, workers=workers)
        folder = tmp_path / str(workers)
        build(dataclasses.replace(config, engine=engine), folder)
        centroids = np.load(folder / "stages" / "copy_centroids.npy")
        assert len(centroids) == 10
        clusters = {
            name: {*np.argsort(((vector - centroids) ** 2).sum(1))[:2].tolist()}
            for name, (vector, _) in embeddings.items()
        }
        expected.append(oracle(embeddings, clusters))
        assert copies_of(folder) == expected[-1]
    assert expected[0] == expected[1]


def test_copies_are_not_scored(config, embeddings, tmp_path, here):
    """Both steps share the embeddings."""
    bounded = dataclasses.replace(config.embeddings, min_score=-1.0)
    build(dataclasses.replace(config, embeddings=bounded), tmp_path)
    dropped = oracle(embeddings).keys()
    assert kept_of(tmp_path) == embeddings.keys() - dropped
    report = json.loads((tmp_path / "report.json").read_text())["pair_scores"]
    assert report["pairs"] == len(embeddings) - len(dropped)
    assert report["without_score"] == 1
    assert [*map(len, here)] == [1, 5]  # a check and one run


@pytest.mark.spark
def test_spark_finds_the_same_copies(config, embeddings, tmp_path, here):
    engine = dataclasses.replace(SPARK, embedding_batch_size=4)
    build(dataclasses.replace(config, engine=engine), tmp_path)
    assert copies_of(tmp_path) == oracle(embeddings)


@pytest.mark.parametrize(
    "fields",
    [
        {"copies": CopiesConfig(max_cosine=0.9), "embeddings": EmbeddingConfig()},
        {"copies": CopiesConfig()},
    ],
)
def test_a_model_and_its_use_go_together(config, fields):
    with pytest.raises(InputError, match=r"config.embeddings.model is '.*'; wanted a"):
        dataclasses.replace(config, **fields)
