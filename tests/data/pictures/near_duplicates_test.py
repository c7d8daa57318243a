import itertools

import numpy as np
import pytest

from align_jax.errors import InputError
from data.pictures import near_duplicates
from data.pictures.near_duplicates import NearDuplicates, hash_distances


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def draw(seed: int, count: int, width: int = 8) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


def test_hash_distances_are_the_smallest_count_of_differing_bits():
    found = hash_distances(
        np.array([0, -1, 5, -(2**63)], np.int64), np.array([1, -2], np.int64)
    )
    assert found.tolist() == [1, 1, 1, 2]
    random = np.random.default_rng(0)
    a, b = random.integers(-(2**63), 2**63, (2, 50), np.int64)
    oracle = [min(bin((x ^ y) & (2**64 - 1)).count("1") for y in b.tolist()) for x in
              a.tolist()]  # fmt: skip
    assert hash_distances(a, b).tolist() == oracle
    none = np.zeros(0, np.int64)
    assert hash_distances(a, none).tolist() == [near_duplicates.FAR] * 50
    assert hash_distances(none, b).shape == (0,)
    with pytest.raises(InputError, match="float64"):
        hash_distances(a.astype(float), b)


def oracle(index: NearDuplicates, queries: np.ndarray) -> list[float]:
    """Compares by buckets, as in the paper: sets of `share` nearest clusters."""
    nearest = index.clusters.shape[1]

    def buckets(vector):
        distances = ((index.centroids - vector) ** 2).sum(1)
        mine = sorted(np.argsort(distances)[:nearest].tolist())
        return set(itertools.combinations(mine, index.share))

    of_evaluation = [buckets(vector) for vector in index.embeddings]
    return [
        max(
            [0.0]
            + [
                float(query @ vector)
                for vector, theirs in zip(index.embeddings, of_evaluation, strict=True)
                if buckets(query) & theirs
            ]
        )
        for query in queries
    ]


@pytest.mark.parametrize("pairs_at_once", [1, 700, 4_000_000])
def test_a_pair_is_compared_exactly_where_it_has_a_bucket_in_common(
    monkeypatch, pairs_at_once
):
    monkeypatch.setattr(near_duplicates, "PAIRS_AT_ONCE", pairs_at_once)
    monkeypatch.setattr(near_duplicates, "COSINES_AT_ONCE", 17)
    evaluation, queries = draw(1, 40), draw(2, 120)
    queries[:20] = unit(evaluation[:20] + 0.02 * queries[:20])
    index = NearDuplicates.build(
        evaluation, draw(3, 40 * 39), clusters=40, nearest=4, threshold=0.97
    )
    assert index.centroids.shape == (40, 8)
    similarity, near = index.query(queries)
    expected = oracle(index, queries)
    np.testing.assert_allclose(similarity, expected, atol=1e-5)
    assert near.tolist() == [value > 0.97 for value in expected]
    assert near[:20].sum() >= 15
    # Some more alike pairs share no bucket, so the buckets make a difference.
    best = (queries @ evaluation.T).max(1)
    assert (similarity < best - 1e-3).sum() > 10


def test_the_threshold_itself_is_no_near_duplicate():
    evaluation = unit(np.array([[1.0, 0.0], [0.0, 1.0]]))
    queries = np.array([[0.6, 0.8], [1.0, 0.0], [-1.0, 0.0]], np.float32)
    arguments = evaluation, draw(0, 20, 2)
    at = NearDuplicates.build(*arguments, threshold=0.8).query(queries)
    np.testing.assert_allclose(at[0], [0.8, 1, 0], atol=1e-7)
    assert at[1].tolist() == [False, True, False]


def test_a_small_sample_gets_fewer_clusters_and_compares_every_pair():
    evaluation, queries = draw(1, 30), draw(2, 50)
    index = NearDuplicates.build(evaluation, draw(3, 11))
    assert len(index.centroids) == 10
    best = (queries @ evaluation.T).max(1)
    np.testing.assert_allclose(index.query(queries)[0], best, atol=1e-6)
    assert len(NearDuplicates.build(evaluation, draw(3, 39 * 12)).centroids) == 12
    for few in (1, 2, 9):
        index = NearDuplicates.build(evaluation, draw(3, few))
        assert len(index.centroids) == few
        np.testing.assert_allclose(index.query(queries)[0], best, atol=1e-6)


def test_the_seed_decides_the_clusters():
    sample = draw(3, 39 * 20)
    first, again, other = (
        NearDuplicates.build(sample[:9], sample, seed=seed) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.centroids, again.centroids)
    assert not np.array_equal(first.centroids, other.centroids)


def test_no_queries_and_no_evaluation_images():
    index = NearDuplicates.build(draw(1, 5), draw(2, 30))
    assert [array.shape for array in index.query(np.zeros((0, 8)))] == [(0,), (0,)]
    none = NearDuplicates.build(np.zeros((0, 8)), draw(2, 30))
    similarity, near = none.query(draw(1, 5))
    assert not similarity.any()
    assert not near.any()


@pytest.mark.filterwarnings("error")
def test_saving_and_loading_changes_nothing(tmp_path):
    index = NearDuplicates.build(draw(1, 30), draw(2, 500), nearest=5, share=2)
    path = tmp_path / "folder" / "index.npz"
    index.save(path)
    loaded = NearDuplicates.load(path)
    assert (loaded.share, loaded.threshold) == (2, 0.975)
    for mine, theirs in zip(
        index.query(draw(3, 20)), loaded.query(draw(3, 20)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert [p.name for p in path.parent.iterdir()] == ["index.npz"]
    content = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == content
    path.write_bytes(content[:-50])
    with pytest.raises(InputError, match=r"index\.npz"):
        NearDuplicates.load(path)
    np.savez_compressed(path, embeddings=draw(1, 300))
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"index\.npz is no readable .npz file"):
        NearDuplicates.load(path)
    np.savez(path, embeddings=draw(1, 3))
    with pytest.raises(InputError, match="centroids"):
        NearDuplicates.load(path)


def test_bad_embeddings_are_refused():
    good = draw(1, 30)
    with pytest.raises(InputError, match="unit vectors"):
        NearDuplicates.build(good * 2, good)
    broken = good.copy()
    broken[7, 1] = np.nan
    with pytest.raises(InputError, match="row 7"):
        NearDuplicates.build(good, broken)
    with pytest.raises(InputError, match=r"\(N, 8\)"):
        NearDuplicates.build(good, draw(1, 30, 4))
    with pytest.raises(InputError, match="found no embeddings"):
        NearDuplicates.build(good, good[:0])
    with pytest.raises(InputError, match="share=11"):
        NearDuplicates.build(good, good, share=11)
    with pytest.raises(InputError, match=r"\(N, 8\)"):
        NearDuplicates.build(good, good).query(draw(1, 3, 5))
