"""A corpus whose pairs are scored by a model, beside the model called directly."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import align_jax
from align_jax.config import read_config
from align_jax.errors import InputError
from data.corpus.build_files import format_report
from data.corpus.builder import Build, build
from data.corpus.config import CorpusConfig, EmbeddingConfig, EngineConfig
from data.corpus.ingest import identify
from data.corpus.rules import RuleBounds
from data.sources.config import SourceConfig
from tests import tiny
from tests.data.corpus.copied_pictures import killed_at, large, write_shards
from tests.data.corpus.corpus_test import draw
from tests.data.spark import SPARK

PICTURES = [draw(n) for n in range(14)]
# The second texts of pictures, a text of several pictures, and a picture in two shards.
ROWS = [
    *((picture, tiny.NAMES[n % 12]) for n, picture in enumerate(PICTURES)),
    *((PICTURES[n], f"Blue {tiny.NAMES[n]}") for n in range(5)),
    (PICTURES[0], "top left"),
    (PICTURES[1], tiny.NAMES[1].upper()),
    (large(), "green top"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    return tiny.write_model(folder, max_pixels=230 * 230)


@pytest.fixture(scope="module")
def config(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_shards(ROWS, folder)
    return CorpusConfig(
        name="scored",
        seed=3,
        ingest=SourceConfig("parquet", str(folder / "*.parquet")),
        rules=RuleBounds(min_unigrams=2),
        vocabulary_size=100,
        embeddings=EmbeddingConfig(model, score_fraction=0.5),
        engine=EngineConfig(workers=1, embedding_batch_size=4),
        shards=2,
    )


@pytest.fixture(scope="module")
def scores(model):
    """The score of each pair that has one, by the model itself."""
    pairs = {(picture, text.lower()) for picture, text in ROWS if picture != large()}
    images, texts = zip(*sorted(pairs), strict=True)
    loaded = align_jax.load(model, batch_size=4)
    found = np.sum(loaded.encode_images(images) * loaded.encode_texts(texts), 1)
    ids = map(identify, images)
    return dict(zip(zip(ids, texts, strict=True), found.tolist(), strict=True))


def pairs_of(folder, stage):
    rows = pq.read_table(folder / "stages" / stage).to_pylist()
    return {(row["image_id"], row["text"]): row.get("score") for row in rows}


def kept_by_hand(scores, fraction):
    falling = sorted(scores.values(), reverse=True)
    bound = falling[int(len(scores) * fraction)]
    return {pair for pair, score in scores.items() if score >= bound}


def test_the_best_share_of_the_pairs_is_kept(config, scores, tmp_path, here):
    build(config, tmp_path / "corpus")
    found = pairs_of(tmp_path / "corpus", "pair_scores")
    unread = (identify(large()), "green top")
    assert found.pop(unread) is None
    assert found.keys() == scores.keys()
    assert len(scores) == 20  # of 22 rows, of which two are one pair
    for pair, score in scores.items():
        assert found[pair] == pytest.approx(score, abs=1e-5)
    gaps = np.diff(sorted(scores.values()))
    assert gaps.min() > 1e-5  # so rounding does not change the order
    kept = pairs_of(tmp_path / "corpus", "kept.parquet").keys()
    assert kept == kept_by_hand(scores, 0.5)
    assert len(kept) == 11
    report = json.loads((tmp_path / "corpus" / "report.json").read_text())
    assert report["rules"][-1] == {"rule": "pair_score", "breaks": 10, "first": 10}
    described = report["pair_scores"]
    assert (described["pairs"], described["without_score"]) == (20, 1)
    assert described["min_score"] == min(found[pair] for pair in kept)
    assert "more is kept of 20 pairs; 1 have no score" in format_report(report)
    page = (tmp_path / "corpus" / "report.html").read_text()
    assert "cosine of picture and text" in page
    assert f"less than {described['min_score']:.6g}" in page
    stages = {path.name for path in (tmp_path / "corpus" / "stages").iterdir()}
    assert "pair_embeddings" in stages
    assert "files_to_embed" not in stages


def test_a_bound_keeps_the_scores_from_it_on_for_any_number_of_workers(
    config, scores, tmp_path, here, monkeypatch
):
    monkeypatch.setattr(Build, "records", lambda self, report: None)
    bound = sorted(scores.values())[6] + 1e-6
    embeddings = dataclasses.replace(
        config.embeddings, min_score=bound, score_fraction=0.0
    )
    kept = []
    for workers in (1, 2):
        engine = dataclasses.replace(config.engine, workers=workers)
        folder = tmp_path / str(workers)
        build(dataclasses.replace(config, embeddings=embeddings, engine=engine), folder)
        kept.append(sorted(pairs_of(folder, "kept.parquet")))
    assert kept[0] == kept[1]
    assert kept[0] == sorted(pair for pair, score in scores.items() if score >= bound)
    assert len(kept[0]) == 13


def test_a_killed_build_goes_on_with_the_next_shard(config, scores, tmp_path, here):
    with killed_at("00001.parquet"), pytest.raises(KeyboardInterrupt):
        build(config, tmp_path)
    first = tmp_path / "stages" / "pair_embeddings" / "00000.parquet"
    written = first.stat().st_mtime_ns
    build(config, tmp_path)
    assert first.stat().st_mtime_ns == written
    kept = pairs_of(tmp_path, "kept.parquet").keys()
    assert kept == kept_by_hand(scores, 0.5)


@pytest.mark.spark
def test_spark_keeps_the_same_pairs(config, scores, tmp_path, here):
    engine = dataclasses.replace(SPARK, embedding_batch_size=4)
    for name, chosen in (("plain", config.engine), ("spark", engine)):
        build(dataclasses.replace(config, engine=chosen), tmp_path / name)
    plain, spark = (tmp_path / name for name in ("plain", "spark"))
    for stage in ("kept.parquet", "pair_scores"):
        assert pairs_of(spark, stage) == pairs_of(plain, stage)
    for path in (plain / "records").iterdir():
        assert (spark / "records" / path.name).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(
    "fields",
    [
        {"min_score": 0.3},
        {"score_fraction": 0.3},
        {"model": "run", "min_score": 0.3, "score_fraction": 0.3},
    ],
)
def test_a_model_and_one_bound_go_together(fields):
    with pytest.raises(InputError, match="wanted one of the two bounds at most"):
        EmbeddingConfig(**fields)


def test_a_bound_that_is_no_cosine_or_a_missing_model_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="min_score is 3"):
        read_config(EmbeddingConfig, {"model": "run", "min_score": 3.0})
    missing = dataclasses.replace(config.embeddings, model=str(tmp_path / "no"))
    with pytest.raises(InputError, match=r"config.embeddings.model is '.*no', which"):
        build(dataclasses.replace(config, embeddings=missing), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()
