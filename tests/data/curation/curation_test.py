"""DataComp's baselines on a pool, against their statement in plain Python."""

import dataclasses
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.config import read_config
from align_jax.errors import InputError
from configs.corpus_datacomp import BASELINES, get_config
from data.curation import kept, pool, vectors
from data.curation.config import ClustersConfig, CurationConfig, FilterBounds
from data.curation.curator import curate
from data.curation.facts import hash_uids
from data.sources.subsets import UIDS, parse_uids, write_subset
from tests.data.curation import pools
from tests.data.curation.pools import B32, ENTITIES, L14, Pool
from tests.data.spark import SPARK

ROWS = 3000


def make(root: pathlib.Path, rows: int) -> tuple[Pool, CurationConfig]:
    """Makes a pool, and the config of all baselines on it."""
    made = pools.make_pool(root, rows)
    synsets = [f"n{number:08}\n" for number in sorted(ENTITIES)]
    (root / "synsets.txt").write_text("".join(synsets))
    names = {*BASELINES} - {"laion2b"}
    config = get_config(",".join(names))
    config.filters["laion2b"] = BASELINES["laion2b"]  # languages are a column here
    config.pool.path = str(made.folder)
    config.language.kind = "column"
    config.language.model = ""
    config.entities.wordnet = pools.write_wordnet(root / "wordnet")
    config.entities.synsets = str(root / "synsets.txt")
    config.clusters.target = str(root / "target.npy")
    config.clusters.centroids = str(root / "centroids.npy")
    config.engine.workers = 1
    return made, read_config(CurationConfig, config.to_dict())


def expected(made: Pool) -> dict[str, list[bool]]:
    """Returns whether each baseline keeps each row, in the pool's order."""
    rows = made.rows
    top = pools.clip_score(rows, L14, 0.3)
    near = [pools.image_based(made, row) for row in rows]
    return {
        "no_filter": [True for _ in rows],
        "basic_filter": [*map(pools.basic_filter, rows)],
        "clip_score": top,
        "laion2b": [row["language"] == "en" and row[B32] >= 0.28 for row in rows],
        "text_based": [*map(pools.text_based, rows)],
        "image_based": near,
        "image_based_intersect_clip_score": [
            a and b for a, b in zip(near, top, strict=True)
        ],
    }


def uids_of(folder: pathlib.Path, name: str) -> list[str]:
    uids = np.load(folder / name / "subset.npy")
    assert uids.dtype == np.dtype("u8,u8")
    return [f"{upper:016x}{lower:016x}" for upper, lower in uids]


def wanted(made: Pool, keeps: list[bool]) -> list[str]:
    rows = zip(made.rows, keeps, strict=True)
    return sorted(row["uid"] for row, keep in rows if keep)


def only(config: CurationConfig, **filters: FilterBounds) -> CurationConfig:
    return dataclasses.replace(config, filters=filters)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Pool, CurationConfig]:
    return make(tmp_path_factory.mktemp("datacomp"), ROWS)


@pytest.fixture(scope="module")
def built(made, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("curated") / "out"
    curate(made[1], folder)
    return folder


def check_baselines(made: Pool, folder: pathlib.Path) -> None:
    for name, keeps in expected(made).items():
        assert name == "no_filter" or 0 < sum(keeps) < len(keeps), name
        assert uids_of(folder, name) == wanted(made, keeps), name


def test_baselines_keep_the_published_rows(made, built):
    check_baselines(made[0], built)


def test_a_fraction_keeps_ties_and_one_row_more(made, built):
    scores = [row[L14] for row in made[0].rows]
    count = len(uids_of(built, "clip_score"))
    smallest = json.loads((built / "report.json").read_text())["filters"]
    assert sum(score > smallest["clip_score"]["min_score"] for score in scores) <= 900
    assert count > 901  # int(0.3 * 3000) + 1, and ties


def test_kept_rows_are_those_of_the_pool(made, built):
    folder = made[0].folder
    for name in ("basic_filter", "image_based_intersect_clip_score"):
        chosen = {*uids_of(built, name)}
        for index, path in enumerate(sorted(folder.glob("*.parquet"))):
            table = pq.read_table(path)
            rows = [uid in chosen for uid in table["uid"].to_pylist()]
            found = pq.read_table(built / name / "kept" / f"{index:05}.parquet")
            assert found.equals(table.filter(pa.array(rows)))


def test_the_report_counts_the_rows_of_each_rule(made, built):
    report = json.loads((built / "report.json").read_text())
    rules = {r["rule"]: r for r in report["filters"]["basic_filter"]["rules"]}
    rows = made[0].rows
    breaks = {
        "language": [row["language"] != "en" for row in rows],
        "words": [len(row["text"].split()) < 3 for row in rows],
        "characters": [len(row["text"]) < 6 for row in rows],
    }
    before = [False] * len(rows)
    for name, broken in breaks.items():
        first = [b and not a for a, b in zip(before, broken, strict=True)]
        before = [a or b for a, b in zip(before, broken, strict=True)]
        found = rules[name]["breaks"], rules[name]["first"]
        assert found == (sum(broken), sum(first)), name
    assert rules["shorter_side"]["meaning"] == "shorter side, pixels, less than 200"
    assert report["filters"]["basic_filter"]["kept"] == len(
        uids_of(built, "basic_filter")
    )


def test_the_page_shows_every_rule_and_escapes_texts(built):
    page = (built / "report.html").read_text()
    for name in BASELINES:
        assert f'<h2 id="{name}">' in page
    for words in (
        "Scores",
        "Shorter side of the pictures",
        "Aspect ratio of the pictures",
        "Words of the texts",
        "Tokens of the texts",
        "Characters of the texts",
        "Dropped first by image_clusters",
        "Dropped first by text_entities",
    ):
        assert words in page
    assert "<script" not in page
    assert "<i>sale" not in page
    assert "&lt;i&gt;sale&lt;/i&gt;" in page


def test_small_parts_and_two_processes_write_the_same_bytes(
    made, built, tmp_path, monkeypatch
):
    monkeypatch.setattr(vectors, "AT_ONCE", 17)
    monkeypatch.setattr(kept, "AT_ONCE", 5)
    monkeypatch.setattr(pool, "BATCH_ROWS", 31)
    names = ("image_based", "clip_score")
    filters = {name: made[1].filters[name] for name in names}
    config = only(made[1], **filters)
    curate(config, tmp_path / "one")
    engine = dataclasses.replace(config.engine, workers=2)
    curate(dataclasses.replace(config, engine=engine), tmp_path / "two")
    for folder in ("one", "two"):
        for name in names:
            found = (tmp_path / folder / name / "subset.npy").read_bytes()
            assert found == (built / name / "subset.npy").read_bytes()


def test_a_stopped_run_continues_and_a_changed_pool_is_refused(
    made, tmp_path, monkeypatch, capsys
):
    config = only(made[1], text_based=made[1].filters["text_based"])
    with monkeypatch.context() as patch:
        patch.setattr("data.curation.curator.write_subset", _stop)
        with pytest.raises(KeyboardInterrupt):
            curate(config, tmp_path)
    assert not (tmp_path / "report.json").exists()
    monkeypatch.setattr("data.curation.facts.describe_rows", _stop)  # is not repeated
    path = tmp_path / "stages" / "shards.json"
    listed = path.read_text()
    path.write_text(listed.replace("00000000", "10000000"))
    with pytest.raises(InputError, match="has changed since"):
        curate(config, tmp_path)
    path.write_text(listed)
    curate(config, tmp_path)
    keeps = expected(made[0])["text_based"]
    assert uids_of(tmp_path, "text_based") == wanted(made[0], keeps)
    curate(config, tmp_path)
    assert "complete: nothing to do" in capsys.readouterr().out


def _stop(*arguments):
    raise KeyboardInterrupt


def test_a_subset_file_and_columns_by_uid_are_used(made, tmp_path):
    rows = [*reversed(made[0].rows)][100:]  # in another order, without some rows
    chosen = np.sort(parse_uids([row["uid"] for row in rows[::3]], "test"))
    write_subset(tmp_path / "subset.npy", [chosen], len(chosen))
    scores = [float(n) for n in range(len(rows))]
    scores[7] = float("nan")
    columns = {"uid": [row["uid"] for row in rows], "mine": scores}
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    config = only(
        made[1],
        both=FilterBounds(
            score="mine", min_score=5.0, subset=str(tmp_path / "subset.npy")
        ),
        top=FilterBounds(score="mine", score_fraction=0.01),
    )
    mine = dataclasses.replace(config.pool, columns=str(tmp_path / "mine.parquet"))
    curate(dataclasses.replace(config, pool=mine), tmp_path / "out")
    numbers = [n for n in range(len(rows)) if n != 7]
    both = [rows[n]["uid"] for n in numbers if n >= 5 and n % 3 == 0]
    assert uids_of(tmp_path / "out", "both") == sorted(both)
    top = [rows[n]["uid"] for n in sorted(numbers)[-31:]]  # int(3000 * 0.01) + 1
    assert uids_of(tmp_path / "out", "top") == sorted(top)


def test_a_uid_twice_among_the_columns_is_refused(made, tmp_path):
    uid = made[0].rows[0]["uid"]
    table = pa.table({"uid": [uid, uid], "mine": [1, 2]})
    pq.write_table(table, tmp_path / "mine.parquet")
    config = only(made[1], top=FilterBounds(score="mine", min_score=0.0))
    mine = dataclasses.replace(config.pool, columns=str(tmp_path / "mine.parquet"))
    with pytest.raises(InputError, match=f"has the uid {uid} more than once"):
        curate(dataclasses.replace(config, pool=mine), tmp_path / "out")


def test_embeddings_of_align_jax_embed_are_read(made, built, tmp_path):
    folder = tmp_path / "embedded"
    folder.mkdir()
    for path in made[0].folder.glob("*.npz"):
        found = np.load(path)["l14_img"].astype(np.float32)
        kind = pa.list_(pa.float32(), pools.WIDTH)
        column = pa.array([*found], kind, mask=np.arange(len(found)) == 3)
        names = [str(n) for n in range(len(found))]
        table = pa.table({"image_id": names, "embedding": column})
        pq.write_table(table, folder / f"{path.stem}.parquet", row_group_size=100)
    embedded = dataclasses.replace(
        made[1].pool, embeddings=str(folder), embedding="embedding"
    )
    config = only(made[1], image_based=made[1].filters["image_based"])
    curate(dataclasses.replace(config, pool=embedded), tmp_path / "out")
    missing = set()
    for path in made[0].folder.glob("*.parquet"):
        missing.add(pq.read_table(path)["uid"][3].as_py())  # dropped without a vector
    before = [uid for uid in uids_of(built, "image_based") if uid not in missing]
    assert uids_of(tmp_path / "out", "image_based") == before


def test_clusters_are_fitted_to_the_rows_of_lowest_hash(made, tmp_path):
    config = dataclasses.replace(
        only(made[1], near=FilterBounds(min_words=2, image_clusters=True)),
        clusters=ClustersConfig(
            target=made[1].clusters.target,
            count=8,
            sample=FilterBounds(languages=("en",)),
            max_sample=300,
        ),
    )
    for folder in ("a", "b"):
        curate(config, tmp_path / folder)
    found = [(tmp_path / f / "near" / "subset.npy").read_bytes() for f in "ab"]
    assert found[0] == found[1]
    rows = made[0].rows
    uids = parse_uids([row["uid"] for row in rows], "test")
    keys = hash_uids(config.seed, uids).tolist()
    usable = [n for n, row in enumerate(rows) if row["language"] == "en"]
    lowest = sorted(sorted(usable, key=keys.__getitem__)[:300])
    stage = tmp_path / "a" / "stages"
    paths = sorted((stage / "sample_vectors").glob("*.npy"))
    sample = np.concatenate([*map(np.load, paths)])
    vectors_ = np.array([rows[n]["l14_img"] for n in lowest])
    vectors_ /= np.linalg.norm(vectors_, axis=1, keepdims=True)
    np.testing.assert_allclose(sample, vectors_, atol=1e-6)
    centroids = np.load(stage / "centroids.npy").tolist()
    assert len(centroids) == 8
    targets = {pools.nearest(vector, centroids) for vector in made[0].target}
    assert 0 < len(targets) < 8
    keeps = [
        len(row["text"].split()) >= 2
        and pools.nearest(row["l14_img"], centroids) in targets
        for row in rows
    ]
    assert uids_of(tmp_path / "a", "near") == wanted(made[0], keeps)


@pytest.mark.spark
def test_spark_writes_the_same_bytes(made, built, tmp_path):
    curate(dataclasses.replace(made[1], engine=SPARK), tmp_path)
    for name in BASELINES:
        found = (tmp_path / name / "subset.npy").read_bytes()
        assert found == (built / name / "subset.npy").read_bytes()
    reports = [json.loads((f / "report.json").read_text()) for f in (tmp_path, built)]
    assert reports[0] == reports[1]


@pytest.mark.pods
def test_a_pool_of_200_000_rows(tmp_path):
    made, config = make(tmp_path, 200_000)
    curate(config, tmp_path / "out")
    check_baselines(made, tmp_path / "out")


def test_uids_are_sorted_as_numpy_sorts_them(built):
    uids = np.load(built / "no_filter" / "subset.npy")
    assert len(uids) == ROWS
    assert uids.dtype == UIDS
    assert (np.sort(uids) == uids).all()


def test_the_config_of_datacomp_names_its_baselines():
    read = read_config(CurationConfig, get_config().to_dict())
    assert {*read.filters} == {"basic_filter", "image_based_intersect_clip_score"}
    assert read_config(CurationConfig, get_config("laion2b").to_dict())
    with pytest.raises(ValueError, match=r"no baselines \['basic'\]; known: no_filter"):
        get_config("basic")
    with pytest.raises(ValueError, match="run it alone"):
        get_config("laion2b,basic_filter")
