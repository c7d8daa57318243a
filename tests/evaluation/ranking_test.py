import numpy as np
import pytest

from align_jax.evaluation import ranking
from align_jax.evaluation.ranking import nearest, pair_ranks
from tests.reference import positive_ranks


def unit(rng, *shape):
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def positives_of(pairs, rows, columns):
    matrix = np.zeros((rows, columns), bool)
    matrix[tuple(np.transpose(pairs))] = True
    return matrix


def test_ranks_by_hand(mesh_of):
    across = np.float32([[1, 0], [0, 1], [-1, 0]])
    columns = np.float32([[1, 0], [1, 0], [0, 1], [0.6, 0.8], [0, -1]])
    # The cosines are 1 1 0 .6 0 / 0 0 1 .8 -1 / -1 -1 0 -.6 0.
    pairs = np.array([[0, 1], [1, 3], [1, 0]])
    rows, found = pair_ranks(across, columns, pairs, mesh_of(2))
    # The right column of the first row ties with its duplicate. The better of the two
    # right columns of the second row is second. The third row has no right column.
    assert rows.tolist() == [1, 1, -1]
    assert found.tolist() == [1, 0, -1, 0, -1]
    without = np.array([[0, 0], [1, 2]])
    rows, found = pair_ranks(across, columns, pairs, mesh_of(2), without)
    assert rows.tolist() == [0, 0, -1]
    assert found.tolist() == [0, 0, -1, 0, -1]


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("scores_bytes", [1 << 30, 4 * 16 * 50])
def test_ranks_are_those_of_the_whole_matrix(
    mesh_of, monkeypatch, devices, scores_bytes
):
    monkeypatch.setattr(ranking, "SCORES_BYTES", scores_bytes)
    rng = np.random.default_rng(0)
    rows, columns = unit(rng, 61, 24), unit(rng, 133, 24)
    columns[100:120] = columns[:20]  # duplicates
    rows[40:50] = rows[:10]
    pairs = np.argwhere(rng.random((61, 133)) < 0.03)
    excluded = np.argwhere(rng.random((61, 133)) < 0.05)
    excluded = np.array(sorted(set(map(tuple, excluded)) - set(map(tuple, pairs))))
    found = pair_ranks(rows, columns, pairs, mesh_of(devices), excluded)
    scores = rows.astype(np.float64) @ columns.T
    scores = np.round(scores, 6)  # duplicates tie in spite of rounding errors
    scores[tuple(excluded.T)] = -2
    right = positives_of(pairs, *scores.shape)
    ways = ((scores, right), (scores.T, right.T))
    for ranks, (cosines, wanted) in zip(found, ways, strict=True):
        some = wanted.any(1)
        assert not some.all()
        expected = positive_ranks(cosines[some], wanted[some])
        np.testing.assert_array_equal(ranks[some], expected)
        assert (ranks[~some] == -1).all()


def test_a_constant_encoder_ranks_all_that_is_wrong_first(mesh_of):
    rng = np.random.default_rng(0)
    same = np.repeat(unit(rng, 1, 640), 40, 0)
    rows, columns = pair_ranks(same, same, np.stack([np.arange(40)] * 2, 1), mesh_of(8))
    assert (rows == 39).all()
    assert (columns == 39).all()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("nearest_bytes", [1 << 20, 4 * 8 * 16])
def test_nearest_are_those_of_the_whole_matrix(
    mesh_of, monkeypatch, devices, nearest_bytes
):
    monkeypatch.setattr(ranking, "NEAREST_BYTES", nearest_bytes)
    rng = np.random.default_rng(0)
    queries, candidates = unit(rng, 37, 16), unit(rng, 211, 16)
    candidates[150:200] = candidates[:50]
    pieces = np.split(candidates, [3, 90, 91, 205])
    cosines, indices = nearest(queries, pieces, 7, mesh_of(devices))
    scores = queries.astype(np.float64) @ candidates.T
    order = np.argsort(-np.round(scores, 6), axis=1, kind="stable")[:, :7]
    np.testing.assert_allclose(cosines, np.take_along_axis(scores, order, 1), atol=1e-6)
    np.testing.assert_array_equal(indices, order)


def test_what_is_not_finite_or_too_few_is_an_error(mesh_of):
    rows = np.eye(4, dtype=np.float32)
    bad = rows.copy()
    bad[2, 1] = np.nan
    with pytest.raises(FloatingPointError, match=r"1 of 4 .* the first is column 2"):
        pair_ranks(rows, bad, np.array([[0, 0]]), mesh_of(1))
    with pytest.raises(FloatingPointError, match="the first is candidate 6"):
        nearest(rows, [rows, bad], 1, mesh_of(1))
    with pytest.raises(ValueError, match="4 candidates; wanted at least 5"):
        nearest(rows, [rows], 5, mesh_of(1))
