"""Subset files in DataComp's form, and sources that read only a subset."""

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from data.sources.subsets import Subset, open_subset, parse_uids, write_subset
from tests.data.sources.reading import PNG, read, write_tar

UIDS = [f"{n:032x}" for n in (0, 2**127 - 1, 2**127, 2**127 + 1)] + ["Ff" * 16]
OTHERS = [f"{1:032x}", f"{2**127 + 2:032x}", "", None, "x" * 32, " " * 32]


def save(path, uids) -> str:
    """Writes a subset as DataComp's own programs do: integers, sorted, by numpy."""
    halves = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids]
    array = np.array(halves, np.dtype("u8,u8"))
    array.sort()
    np.save(path, array)
    return str(path)


def test_a_written_subset_has_the_bytes_that_numpy_writes(tmp_path):
    theirs = save(tmp_path / "theirs.npy", UIDS)
    uids = parse_uids(UIDS, "test")
    write_subset(tmp_path / "ours.npy", [uids[:2], uids[2:2], uids[2:]], 5)
    assert (tmp_path / "ours.npy").read_bytes() == (
        tmp_path / "theirs.npy"
    ).read_bytes()
    assert open_subset(theirs).tolist() == uids.tolist()
    write_subset(tmp_path / "none.npy", [], 0)
    assert open_subset(str(tmp_path / "none.npy")).shape == (0,)


def test_a_subset_knows_its_uids(tmp_path):
    subset = Subset(save(tmp_path / "a.npy", UIDS))
    assert all(uid in subset for uid in UIDS)
    assert UIDS[-1].lower() in subset
    assert not any(other in subset for other in OTHERS)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.array([(2, 1), (1, 2)], "u8,u8"), "is not sorted"),
        (np.array([(1, 2), (1, 1)], "u8,u8"), "is not sorted"),
        (np.array([1, 2], "u8"), r"uint64 \(2,\); wanted a vector of dtype u8,u8"),
        (np.zeros((1, 2), "u8,u8"), r"\(1, 2\); wanted a vector"),
        (np.array(["a"], object), "is no readable subset file"),
    ],
)
def test_another_array_is_refused(tmp_path, array, match):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=match):
        open_subset(str(tmp_path / "a.npy"))


def test_the_order_is_checked_across_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.subsets.AT_ONCE", 2)
    uids = np.array([(n, 0) for n in (1, 2, 2, 3, 4)], "u8,u8")
    np.save(tmp_path / "a.npy", uids)
    assert len(open_subset(str(tmp_path / "a.npy"))) == 5
    for first in range(4):
        wrong = uids.copy()
        wrong[first] = (9, 0)
        np.save(tmp_path / "a.npy", wrong)
        with pytest.raises(InputError, match="is not sorted"):
            open_subset(str(tmp_path / "a.npy"))


def test_parts_out_of_order_leave_no_file(tmp_path):
    uids = parse_uids(UIDS, "test")
    with pytest.raises(InputError, match="is not sorted"):
        write_subset(tmp_path / "a.npy", [uids[2:], uids[:2]], 5)
    with pytest.raises(InputError, match="found 5 uids; wanted 6"):
        write_subset(tmp_path / "a.npy", [uids], 6)
    assert not [*tmp_path.iterdir()]


def test_sources_read_only_the_pairs_of_a_subset(tmp_path):
    subset = save(tmp_path / "subset.npy", UIDS[:2])
    names = [UIDS[0], UIDS[1], UIDS[2], None]
    rows = [
        {"uid": uid, "url": f"http://u/{n}", "caption": f"text {n}", "key": f"{n}"}
        for n, uid in enumerate(names)
    ]
    expected = [(PNG, f"http://u/{n}", f"text {n}", "") for n in (0, 1)]
    drops = {"not in the subset": 1, "no uid": 1}

    folder = tmp_path / "parquet"
    folder.mkdir()
    columns = {name: [row[name] for row in rows] for name in ("uid", "url", "caption")}
    pq.write_table(pa.table({**columns, "image": [PNG] * 4}), folder / "a.parquet")
    found = read("parquet", folder, text_column="caption", subset=subset)
    assert found == (expected, drops)

    folder = tmp_path / "tars"
    folder.mkdir()
    parts = [(row, "jpg", PNG) for row in rows]
    parts += [(row, "json", json.dumps(row).encode()) for row in rows]
    members = [(f"{row['key']}.{kind}", content) for row, kind, content in parts]
    write_tar(folder / "a.tar", sorted(members))
    assert read("webdataset", folder, subset=subset) == (expected, drops)

    folder = tmp_path / "img2dataset"
    folder.mkdir()
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns |= {"status": ["success"] * 4, "jpg": [PNG] * 4}
    pq.write_table(pa.table(columns), folder / "00000.parquet")
    assert read("img2dataset", folder, subset=subset) == (expected, drops)


def test_a_subset_of_a_source_without_uids_is_refused(tmp_path):
    subset = save(tmp_path / "subset.npy", UIDS)
    with pytest.raises(InputError, match="kind 'csv' has no uids for the subset"):
        read("csv", tmp_path, subset=subset)
    table = pa.table({"image": [PNG], "alt_text": ["a"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="lacks the column 'uid'"):
        read("parquet", tmp_path, subset=subset)
    with pytest.raises(InputError, match=r"b\.npy is no readable subset file"):
        read("parquet", tmp_path, subset=str(tmp_path / "b.npy"))


def test_membership_takes_few_steps(tmp_path):
    uids = np.zeros(2_000_000, "u8,u8")
    uids["f0"] = np.arange(len(uids))
    np.save(tmp_path / "a.npy", uids)
    subset = Subset(str(tmp_path / "a.npy"))
    started = time.monotonic()
    assert sum(f"{n:016x}{0:016x}" in subset for n in range(0, 4_000_000, 2000)) == 1000
    assert time.monotonic() - started < 2  # a search through all takes hours
