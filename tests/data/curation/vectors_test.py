"""Embeddings are read in parts, whatever their file is."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from data.curation import vectors
from data.curation.config import PoolConfig
from data.curation.vectors import (
    read_matrix,
    read_vectors,
    select_vectors,
    unit_rows,
)
from data.sources.subsets import open_subset

ROWS, WIDTH = 40_000, 128


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_never_whole_in_memory(tmp_path, monkeypatch, save):
    monkeypatch.setattr(vectors, "AT_ONCE", 1000)
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"uid": np.arange(ROWS)}), table)
    kept = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float16)
    save(tmp_path / "a.npz", l14_img=kept, other=kept[:2])
    pool = PoolConfig(str(tmp_path))
    tracemalloc.start()
    rows = sum(map(len, read_vectors(pool, table)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == ROWS
    assert peak < kept.nbytes / 2  # 10 MB
    chosen = np.array([0, 999, 1000, 20_000, ROWS - 1])
    found = np.concatenate([*select_vectors(pool, table, chosen)])
    np.testing.assert_array_equal(found, unit_rows(kept[chosen]))


def test_rows_get_unit_length_or_nothing():
    rows = np.array([[3, 4], [0, 0], [np.inf, 1], [np.nan, 1]], np.float16)
    found = unit_rows(rows)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [0, 0], [0, 0]], atol=1e-7)


def test_a_mangled_matrix_is_refused(tmp_path):
    content = b"\x93NUMPY\x01\0\x10\0{'descr': [[((((  "
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match="is no NumPy file"):
        read_matrix(tmp_path / "a.npy", "config.clusters.target")
    with pytest.raises(InputError, match="is no readable subset file"):
        open_subset(str(tmp_path / "a.npy"))
