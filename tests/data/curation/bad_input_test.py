"""Bad pools, files and configs end in one line before a subset is written."""

import dataclasses
import pathlib
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from data.corpus.config import EngineConfig
from data.curation.config import (
    ClustersConfig,
    CurationConfig,
    EntitiesConfig,
    FilterBounds,
    PoolConfig,
)
from data.curation.curator import curate
from tests.data.curation.pools import write_wordnet

UIDS = [f"{n:032x}" for n in range(6)]
CLUSTERS = FilterBounds(image_clusters=True)


def write_pool(folder: pathlib.Path, **changed) -> None:
    """Writes a table of six rows, without the columns that are None."""
    columns = {
        "uid": UIDS,
        "text": ["a b c"] * 6,
        "original_width": [300] * 6,
        "original_height": [300] * 6,
        "score": [0.1, 0.2, None, 0.4, float("nan"), float("inf")],
        **changed,
    }
    kept = {name: column for name, column in columns.items() if column is not None}
    pq.write_table(pa.table(kept), folder / "a.parquet")


@pytest.fixture
def config(tmp_path) -> CurationConfig:
    (tmp_path / "pool").mkdir()
    write_pool(tmp_path / "pool")
    np.savez(tmp_path / "pool" / "a.npz", l14_img=np.eye(6, 4, dtype=np.float16))
    np.save(tmp_path / "target.npy", np.eye(2, 4))
    return CurationConfig(
        name="bad",
        seed=0,
        pool=PoolConfig(str(tmp_path / "pool")),
        filters={"wide": FilterBounds(min_shorter_side=200)},
        clusters=ClustersConfig(str(tmp_path / "target.npy"), count=2),
        engine=EngineConfig(workers=1),
    )


def refuse(config: CurationConfig, tmp_path: pathlib.Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        curate(config, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not [*(tmp_path / "out").glob("*/subset.npy")]


def clustered(config: CurationConfig, **changed) -> CurationConfig:
    clusters = dataclasses.replace(config.clusters, **changed)
    return dataclasses.replace(config, filters={"near": CLUSTERS}, clusters=clusters)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"uid": None}, r"lacks the columns \['uid'\]"),
        ({"original_width": None}, r"lacks the columns \['original_width'\]"),
        ({"uid": [*UIDS[:5], "xyz"]}, "a.parquet has the uid 'xyz'; wanted 32 hex"),
        ({"uid": [*range(6)]}, "has the uid 0; wanted 32 hex"),
        ({"uid": [*UIDS[:5], None]}, "has the uid None; wanted 32 hex"),
        ({"uid": [*UIDS[:5], "0" * 30 + " 0"]}, "wanted 32 hex"),
        ({"text": [1] * 6}, "column 'text' of .*a.parquet is int64; wanted texts"),
        ({"original_width": ["3"] * 6}, "'original_width' of .* is string; wanted num"),
    ],
)
def test_a_bad_table_is_refused(config, tmp_path, changed, match):
    write_pool(tmp_path / "pool", **changed)
    refuse(config, tmp_path, match)


def test_a_damaged_table_is_refused(config, tmp_path):
    path = tmp_path / "pool" / "a.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    refuse(config, tmp_path, "a.parquet is damaged")


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda path: path.unlink(), r"no embeddings: wanted .*a\.npz"),
        (
            lambda path: np.savez(path, l14_img=np.eye(5, 4)),
            "has 5 embeddings 'l14_img', but .* has 6 rows",
        ),
        (lambda path: np.savez(path, b32_img=np.eye(6)), "lacks the array 'l14_img'"),
        (
            lambda path: np.savez(path, l14_img=np.asfortranarray(np.eye(6, 4))),
            "in F order",
        ),
        (lambda path: np.savez(path, l14_img=np.eye(6, dtype=int)), "is int64"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "is damaged"),
        (lambda path: _flip(path), "is damaged .*CRC"),
        (lambda path: _compress(path), "is damaged .*decompressing"),
        (lambda path: _mangle(path), "is damaged"),
        (lambda path: np.savez(path, l14_img=np.eye(6)), "width 4; wanted 6"),
        (lambda path: np.savez(path, l14_img=np.zeros((6, 4))), "only 0 rows with"),
    ],
)
def test_bad_embeddings_are_refused(config, tmp_path, write, match):
    write(tmp_path / "pool" / "a.npz")
    refuse(clustered(config), tmp_path, match)


def _flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(np.float16(1).tobytes() + b"\0\0")] ^= 1
    path.write_bytes(content)


def _compress(path: pathlib.Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    np.savez_compressed(path, l14_img=vectors)
    content = bytearray(path.read_bytes())
    start = content.index(b"l14_img.npy") + 71
    content[start : start + 40] = bytes(byte ^ 255 for byte in content[start:][:40])
    path.write_bytes(content)


def _mangle(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("l14_img.npy", b"\x93NUMPY\x01\0\x10\0{'descr': [[((((  ")


def test_tables_of_one_name_need_embeddings_of_their_own(config, tmp_path):
    for name in ("p", "q"):
        (tmp_path / name).mkdir()
        write_pool(tmp_path / name)
    vectors = str(tmp_path / "pool")
    shared = PoolConfig(str(tmp_path / "[pq]" / "*.parquet"), embeddings=vectors)
    config = dataclasses.replace(clustered(config), pool=shared)
    refuse(config, tmp_path, "p/a.parquet and .*q/a.parquet have the same file of")
    for name in ("p", "q"):
        np.savez(tmp_path / name / "a.npz", l14_img=np.eye(6, 4))
    own = dataclasses.replace(shared, embeddings="")
    curate(dataclasses.replace(config, pool=own), tmp_path / "own")


@pytest.mark.parametrize(
    "changed",
    ["columns/a.parquet", "pool/a.npz", "target.npy", "wordnet/noun.exc"],
)
def test_a_run_whose_input_changed_is_refused(config, tmp_path, changed, monkeypatch):
    (tmp_path / "columns").mkdir()
    table = pa.table({"uid": UIDS, "mine": [0.5] * 6})
    pq.write_table(table, tmp_path / "columns" / "a.parquet")
    pool = dataclasses.replace(config.pool, columns=str(tmp_path / "columns"))
    bounds = dataclasses.replace(CLUSTERS, score="mine", min_score=0.1)
    (tmp_path / "synsets").write_text("n02084071\n")
    config = dataclasses.replace(
        clustered(config),
        pool=pool,
        filters={"near": bounds, "dogs": FilterBounds(text_entities=True)},
        entities=EntitiesConfig(
            wordnet=write_wordnet(tmp_path / "wordnet"),
            synsets=str(tmp_path / "synsets"),
        ),
    )
    with monkeypatch.context() as patch:
        patch.setattr("data.curation.curator.write_subset", _stop)
        with pytest.raises(KeyboardInterrupt):
            curate(config, tmp_path / "out")
    path = tmp_path / changed
    content = path.read_bytes()
    if path.suffix == ".parquet":
        pq.write_table(table.slice(0, 5), path)
    else:
        path.write_bytes(content + b"0")
    refuse(config, tmp_path, "input has changed since .*out was begun")
    path.write_bytes(content)
    curate(config, tmp_path / "out")


def _stop(*arguments):
    raise KeyboardInterrupt


def test_names_of_scores_that_differ_in_case_are_refused(config, tmp_path):
    write_pool(tmp_path / "pool", Score=[0.5] * 6)
    filters = {n: FilterBounds(score=n, min_score=0.3) for n in ("score", "Score")}
    config = dataclasses.replace(config, filters=filters)
    refuse(config, tmp_path, "differ only in case")


def test_columns_of_rarer_types_are_read(config, tmp_path):
    scores = pa.array([0, 1, 2, 3, 4, 5]).cast(pa.decimal128(30, 2))
    texts = pa.array(["a", "b c", None, "d e", "f", "g h"]).cast(pa.string_view())
    write_pool(tmp_path / "pool", score=scores, text=texts, none=pa.nulls(6))
    filters = {
        "high": FilterBounds(min_words=2, score="score", min_score=3),
        "none": FilterBounds(score="none", min_score=0.1),
    }
    curate(dataclasses.replace(config, filters=filters), tmp_path / "out")
    found = np.load(tmp_path / "out" / "high" / "subset.npy")
    assert found["f1"].tolist() == [3, 5]
    table = pq.read_table(tmp_path / "out" / "high" / "kept" / "00000.parquet")
    assert table["text"].to_pylist() == ["d e", "g h"]
    assert (tmp_path / "out" / "report.html").exists()
    assert not len(np.load(tmp_path / "out" / "none" / "subset.npy"))


@pytest.mark.parametrize("name", ["shard=7", "score=3", "Ann's [data]"])
def test_the_name_of_the_folder_does_not_matter(config, tmp_path, name):
    filters = {
        "near": CLUSTERS,
        "high": FilterBounds(score="score", min_score=0.2),
    }
    np.save(tmp_path / "centroids.npy", np.eye(3, 4))
    config = clustered(config, centroids=str(tmp_path / "centroids.npy"))
    curate(dataclasses.replace(config, filters=filters), tmp_path / name)
    assert (tmp_path / name / "report.html").exists()
    found = {n: np.load(tmp_path / name / n / "subset.npy")["f1"] for n in filters}
    assert found["near"].tolist() == [0, 1, 3]  # row 3 is at right angles to all
    assert found["high"].tolist() == [1, 3]


def test_a_folder_with_a_backslash_is_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"read .*a\\b/stages/spill: .*backslash"):
        curate(config, tmp_path / "a\\b")


def test_bad_clusters_are_refused(config, tmp_path):
    refuse(clustered(config, count=7), tmp_path, "count is 7, but only 4 rows")
    np.save(tmp_path / "wrong.npy", np.arange(4))
    wrong = str(tmp_path / "wrong.npy")
    refuse(clustered(config, target=wrong), tmp_path, "wanted finite floating-point")
    refuse(clustered(config, centroids=wrong), tmp_path, r"\(config.clusters.centroids")
    with pytest.raises(InputError, match=r"sample.image_clusters is True"):
        ClustersConfig(sample=CLUSTERS)


def test_a_fraction_of_scores_that_are_missing_is_refused(config, tmp_path):
    filters = {"top": FilterBounds(score="score", score_fraction=0.4)}
    curate(dataclasses.replace(config, filters=filters), tmp_path / "kept")
    found = np.load(tmp_path / "kept" / "top" / "subset.npy")
    assert found["f1"].tolist() == [0, 1, 3]  # the last of the three finite scores
    filters = {"top": FilterBounds(score="score", score_fraction=0.5)}
    wide = dataclasses.replace(config, filters=filters)
    refuse(wide, tmp_path, "0.5 of 6 rows, but not more than 3 have a finite 'score'")
    match = r"config\.clusters\.sample\.score_fraction is 0\.5 of 6"
    with pytest.raises(InputError, match=match):
        curate(clustered(config, sample=filters["top"]), tmp_path / "sampled")
    filters = {"top": FilterBounds(score="scores", min_score=0.5)}
    refuse(dataclasses.replace(config, filters=filters), tmp_path, r"\['scores'\]")


def test_rows_without_a_size_are_dropped(config, tmp_path):
    sizes = [None, 300, 0, 300, 300, -300]
    write_pool(tmp_path / "pool", original_width=sizes)
    filters = {
        "wide": FilterBounds(min_shorter_side=200),
        "narrow": FilterBounds(max_aspect_ratio=3.0),
    }
    curate(dataclasses.replace(config, filters=filters), tmp_path / "out")
    for name in filters:
        found = np.load(tmp_path / "out" / name / "subset.npy")
        assert found["f1"].tolist() == [1, 3, 4]


def test_a_score_without_a_bound_is_refused():
    for fields in (
        {"score": "s"},
        {"min_score": 0.1},
        {"score": "s", "min_score": 0.1, "score_fraction": 0.3},
    ):
        with pytest.raises(InputError, match="wanted a column and one of the two"):
            FilterBounds(**fields)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"filters": {}}, "config.filters is empty"),
        ({"filters": {"a/b": FilterBounds()}}, "has the name 'a/b'"),
        ({"filters": {"stages": FilterBounds()}}, "not 'stages'"),
        (
            {"filters": {"a": FilterBounds(languages=("en",))}},
            "config.filters.a needs config.language.kind",
        ),
        (
            {"filters": {"a": FilterBounds(text_entities=True)}},
            "config.filters.a needs config.entities",
        ),
        (
            {"filters": {"a": CLUSTERS}, "clusters": ClustersConfig()},
            "needs config.clusters.target",
        ),
        (
            {
                "filters": {"a": CLUSTERS},
                "clusters": ClustersConfig("t", sample=FilterBounds(languages=("en",))),
            },
            "config.clusters.sample needs config.language.kind",
        ),
    ],
)
def test_a_filter_without_its_needs_is_refused(config, fields, match):
    with pytest.raises(InputError, match=match):
        dataclasses.replace(config, **fields)


def test_entities_are_words_or_synsets(config, tmp_path):
    with pytest.raises(InputError, match="words alone, or wordnet and synsets"):
        EntitiesConfig(words="a", wordnet="b", synsets="c")
    with pytest.raises(InputError, match="words alone, or wordnet and synsets"):
        EntitiesConfig(wordnet="b")
    words = tmp_path / "words.txt"
    words.write_text("\n")
    filters = {"a": FilterBounds(text_entities=True)}
    named = dataclasses.replace(
        config, filters=filters, entities=EntitiesConfig(str(words))
    )
    refuse(named, tmp_path, "is empty; wanted one entity a line")
    words.write_text("cat\nnew york\n")
    refuse(named, tmp_path, "has the line 'new york'; wanted one word a line")
    words.write_text("\ufeffcat\n b \n", encoding="utf-8")
    write_pool(tmp_path / "pool", text=["b", "a b c", "B", "b,", "", "cat"])
    curate(named, tmp_path / "out")
    found = np.load(tmp_path / "out" / "a" / "subset.npy")
    assert found["f1"].tolist() == [0, 1, 5]
    words.write_text("v01926311\n")
    synsets = EntitiesConfig(wordnet=str(tmp_path), synsets=str(words))
    refuse(
        dataclasses.replace(config, filters=filters, entities=synsets),
        tmp_path / "other",
        "has the line 'v01926311'; wanted noun synsets",
    )
