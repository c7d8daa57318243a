"""A pool made from tars by a model, and filters that read it."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import align_jax
from align_jax.config import read_config
from align_jax.errors import run_command
from data import score
from data.curation import scored_pool
from data.curation.config import CurationConfig
from data.curation.curator import curate
from data.pictures import embeddings
from tests import tiny
from tests.data.corpus.copied_pictures import run_here
from tests.data.curation.curation_test import uids_of
from tests.data.sources.reading import write_tar

TEXTS = ["red left", "Blue top", "", "green bottom", "red left", "blue right"]
UIDS = [f"{n:02}" * 16 for n in range(len(TEXTS))]
PICTURES = [tiny.draw(name, 3) for name in tiny.NAMES[:6]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Two tars of three samples; one picture is broken, and one more has no uid."""
    folder = tmp_path_factory.mktemp("tars")
    for tar in (0, 1):
        members = []
        for n in range(3 * tar, 3 * tar + 3):
            fields = {"uid": UIDS[n], "alt_text": TEXTS[n], "url": f"http://x/{n}"}
            members += [
                (f"{n}.jpg", b"broken" if n == 4 else PICTURES[n]),
                (f"{n}.json", json.dumps(fields).encode()),
            ]
        members += [
            (f"x{tar}.jpg", PICTURES[0]),
            (f"x{tar}.json", b'{"alt_text": "a"}'),
        ]
        write_tar(folder / f"{tar}.tar", members)
    return folder


def make(model, path, out, monkeypatch, *more, kind="webdataset"):
    flags = [f"--model={model}", f"--kind={kind}", f"--path={path}", f"--out={out}"]
    monkeypatch.setattr(embeddings, "_run", run_here)
    flags += ["--batch_size=4", "--workers=1", *more]
    monkeypatch.setattr(sys, "argv", ["score", *flags])
    return run_command("data.score", score.main)


def read_pool(folder):
    rows, arrays = [], []
    for path in sorted((folder / "pool").glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
        arrays.append(np.load(path.with_suffix(".npz")))
    found = {n: np.concatenate([a[n] for a in arrays]) for n in arrays[0].files}
    return rows, found


def test_a_pool_has_the_scores_and_the_embeddings_of_the_model(
    model, tars, tmp_path, monkeypatch, capsys
):
    assert make(model, tars, tmp_path, monkeypatch, "--name=tiny") == 0
    wanted = "6 pairs, 1 without a score, 2 no uid"
    assert wanted in capsys.readouterr().out
    rows, arrays = read_pool(tmp_path)
    assert [row["uid"] for row in rows] == UIDS
    assert [row["text"] for row in rows] == TEXTS
    assert [row["url"] for row in rows] == [f"http://x/{n}" for n in range(6)]
    sides = [(row["original_width"], row["original_height"]) for row in rows]
    assert sides == [(12, 12)] * 4 + [(0, 0), (12, 12)]
    loaded = align_jax.load(model, batch_size=4)
    readable = [0, 1, 2, 3, 5]
    images = loaded.encode_images([PICTURES[n] for n in readable])
    texts = loaded.encode_texts(TEXTS)
    assert {*arrays} == {"tiny_img", "tiny_txt"}
    assert all(array.dtype == np.float16 for array in arrays.values())
    np.testing.assert_allclose(arrays["tiny_img"][readable], images, atol=2e-3)
    np.testing.assert_allclose(arrays["tiny_txt"], texts, atol=2e-3)
    assert not arrays["tiny_img"][4].any()
    scores = [row["tiny_similarity_score"] for row in rows]
    assert scores[4] is None
    expected = np.sum(images * texts[readable], 1)
    np.testing.assert_allclose([scores[n] for n in readable], expected, atol=1e-5)


def write_table(path, uids):
    columns = {"uid": uids, "image": PICTURES, "alt_text": TEXTS}
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_files_give_uids(model, tmp_path, monkeypatch, capsys):
    """The uids may be in a dictionary, in capitals, or missing."""
    uids = pa.array([UIDS[0], "A" * 32, None, "", UIDS[4][:31], UIDS[1]])
    path = write_table(tmp_path / "a=1 [b].parquet", uids.dictionary_encode())
    out = tmp_path / "out"
    assert make(model, path, out, monkeypatch, kind="parquet") == 0
    assert "3 pairs, 0 without a score, 3 no uid" in capsys.readouterr().out
    rows, _ = read_pool(out)
    assert [row["uid"] for row in rows] == [UIDS[0], "A" * 32, UIDS[1]]
    assert [row["text"] for row in rows] == [TEXTS[n] for n in (0, 1, 5)]
    written = (out / "pool" / "00000.npz").read_bytes()
    (out / "pool" / "00000.npz").unlink()
    assert make(model, path, out, monkeypatch, kind="parquet") == 0
    assert (out / "pool" / "00000.npz").read_bytes() == written
    (out / "pool" / "00000.parquet").write_bytes(b"PAR1")
    capsys.readouterr()
    assert make(model, path, out, monkeypatch, kind="parquet") == 2
    assert "00000.parquet is not a Parquet file" in capsys.readouterr().err


@pytest.mark.parametrize("uids", [pa.array(range(6)), pa.array(["x"] * 6)])
def test_a_source_without_uids_is_refused(model, tmp_path, monkeypatch, capsys, uids):
    path = write_table(tmp_path / "0.parquet", uids)
    assert make(model, path, tmp_path / "out", monkeypatch, kind="parquet") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "0.parquet gave no pair with a uid: 6 x no uid; wanted uids of 32" in line


def test_filters_read_a_scored_pool_and_its_columns(model, tars, tmp_path, monkeypatch):
    """The metadata has the rows in another order, as a pool that was downloaded has."""
    assert make(model, tars, tmp_path / "scored", monkeypatch) == 0
    rows, arrays = read_pool(tmp_path / "scored")
    chosen = [UIDS[n] for n in (0, 3)]
    np.save(tmp_path / "centroids.npy", np.eye(80, dtype=np.float32)[:8])
    target = arrays["align_img"][[0, 3]].astype(np.float32)
    np.save(tmp_path / "target.npy", target)
    names = ("uid", "text", "original_width", "original_height")
    downloaded = pa.Table.from_pylist(rows[::-1]).select(names)
    pq.write_table(downloaded, tmp_path / "metadata.parquet")
    filters = {"best": {"score": "align_similarity_score", "score_fraction": 0.4}}
    near = {"near": {"image_clusters": True}}
    pool = str(tmp_path / "scored" / "pool")
    fields = {"name": "x", "seed": 0, "engine": {"workers": 1}}
    clusters = {
        "target": str(tmp_path / "target.npy"),
        "centroids": str(tmp_path / "centroids.npy"),
    }
    for name, more in (
        (
            "own",
            {
                "pool": {"path": pool, "embedding": "align_img"},
                "filters": filters | near,
                "clusters": clusters,
            },
        ),
        (
            "brought",
            {
                "pool": {"path": str(tmp_path / "metadata.parquet"), "columns": pool},
                "filters": filters,
            },
        ),
    ):
        curate(read_config(CurationConfig, fields | more), tmp_path / name)
    scored = [row for row in rows if row["align_similarity_score"] is not None]
    scored.sort(key=lambda row: -row["align_similarity_score"])
    best = sorted(row["uid"] for row in scored[:3])  # int(6 x 0.4) + 1
    assert uids_of(tmp_path / "own", "best") == best
    assert uids_of(tmp_path / "brought", "best") == best
    cluster = np.argmax(arrays["align_img"][:, :8].astype(np.float32), 1)
    near_rows = [n for n in range(6) if n != 4 and cluster[n] in cluster[[0, 3]]]
    assert uids_of(tmp_path / "own", "near") == [UIDS[n] for n in near_rows]
    assert {*chosen} <= {UIDS[n] for n in near_rows}


def test_a_killed_run_goes_on_with_the_next_shards(model, tars, tmp_path, monkeypatch):
    assert make(model, tars, tmp_path / "whole", monkeypatch) == 0
    write = scored_pool.write_pool

    def killed(config, folder, index):
        if index == 1:
            raise KeyboardInterrupt
        return write(config, folder, index)

    monkeypatch.setattr(scored_pool, "SHARDS_AT_ONCE", 1)
    with monkeypatch.context() as patch:
        patch.setattr(scored_pool, "write_pool", killed)
        assert make(model, tars, tmp_path / "cut", monkeypatch) == 130
    first = tmp_path / "cut" / "pool" / "00000.parquet"
    written = first.stat().st_mtime_ns
    assert make(model, tars, tmp_path / "cut", monkeypatch) == 0
    assert first.stat().st_mtime_ns == written
    for path in (tmp_path / "whole" / "pool").iterdir():
        other = tmp_path / "cut" / "pool" / path.name
        assert other.read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--name=a b", "--name is 'a b'; wanted letters"),
        ("--batch_size=0", "--batch_size is 0; wanted 1 or more"),
        ("--kind=csv", "a source of kind 'csv' has no uids for a pool; wanted one of"),
        ("--model=nowhere", "--model is 'nowhere', which is not there"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(
    model, tars, tmp_path, monkeypatch, capsys, flag, message
):
    assert make(model, tars, tmp_path / "out", monkeypatch, flag) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_source_or_model_is_refused(model, tars, tmp_path, monkeypatch, capsys):
    assert make(model, tars, tmp_path / "out", monkeypatch) == 0
    assert make(model, tars / "0.tar", tmp_path / "out", monkeypatch) == 2
    assert "another config" in capsys.readouterr().err
    places = tmp_path / "out" / "pool" / "00001.parquet"
    places.unlink()
    other = tiny.write_model(tmp_path / "other", seed=1)
    assert make(other, tars, tmp_path / "out", monkeypatch) == 2
    assert "holds embeddings of another model" in capsys.readouterr().err
