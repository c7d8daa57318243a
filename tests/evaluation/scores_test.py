import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from align_jax.evaluation.scores import (
    chance_recall,
    mean_per_class,
    rank_correlation,
    recall_at,
    sampled_correlation,
)
from tests.reference import positive_ranks


def test_ranks_by_hand():
    scores = np.array(
        [
            [0.9, 0.1, 0.5],  # the right candidate is first
            [0.4, 0.6, 0.5],  # the better of two right candidates is second
            [0.2, 0.2, 0.1],  # a tie counts against the model
            [0.7, 0.7, 0.7],  # two right candidates tie with a wrong one
        ]
    )
    positives = np.array([[1, 0, 0], [1, 0, 1], [1, 0, 0], [1, 1, 0]], bool)
    ranks = positive_ranks(scores, positives)
    assert ranks.tolist() == [0, 1, 1, 1]
    assert recall_at(ranks, 1) == 0.25
    assert recall_at(ranks, 2) == 1.0


def test_a_constant_encoder_never_beats_chance():
    rng = np.random.default_rng(0)
    positives = np.eye(40, dtype=bool)
    positives[rng.integers(0, 40, 20), rng.integers(0, 40, 20)] = True
    ranks = positive_ranks(np.ones((40, 40)), positives)
    for k in (1, 5, 10):
        assert recall_at(ranks, k) == 0.0 < chance_recall(positives.sum(1), 40, k)


def test_chance_by_hand_and_by_simulation():
    assert chance_recall(np.ones(10), 10, 1) == pytest.approx(0.1)
    assert chance_recall(np.ones(3), 3, 5) == 1.0
    assert chance_recall(np.array([2]), 10, 5) == pytest.approx(
        1 - math.comb(8, 5) / math.comb(10, 5)
    )
    rng = np.random.default_rng(0)
    positives = rng.random((6, 30)) < 0.2
    positives[:, 0] = True
    drawn = [
        recall_at(positive_ranks(rng.random((6, 30)), positives), 3)
        for _ in range(4000)
    ]
    assert chance_recall(positives.sum(1), 30, 3) == pytest.approx(
        np.mean(drawn), abs=0.01
    )


def test_recalls_are_top_k_accuracies():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(500, 20)), rng.integers(0, 20, 500)
    ranks = positive_ranks(scores, labels[:, None] == np.arange(20))
    for k in (1, 5):
        expected = sklearn.metrics.top_k_accuracy_score(labels, scores, k=k)
        assert recall_at(ranks, k) == pytest.approx(expected)


def test_mean_per_class_by_hand_and_by_scikit_learn():
    right = np.array([True, False, True, True, False])
    assert mean_per_class(right, np.array([0, 0, 7, 7, 7])) == pytest.approx(7 / 12)
    rng = np.random.default_rng(0)
    labels, found = rng.integers(0, 9, 300), rng.integers(0, 9, 300)
    expected = sklearn.metrics.balanced_accuracy_score(labels, found)
    assert mean_per_class(labels == found, labels) == pytest.approx(expected)


def test_rank_correlation_by_hand_and_by_scipy():
    assert rank_correlation(np.array([1, 2, 3]), np.array([10, 30, 20])) == 0.5
    assert rank_correlation(np.array([1, 2, 3]), np.array([5, 5, 5])) == 0.0
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 200), rng.normal(size=200)  # with ties
    ranks = [scipy.stats.rankdata(x) for x in (a, b)]
    assert rank_correlation(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_a_sampled_correlation_takes_one_item_of_half_of_the_queries():
    # Items of a query are equal and the queries are in order, so any draw gives 1.
    queries = np.repeat(np.arange(10), 3)[::-1]
    ratings = queries * 1.0
    found = sampled_correlation(queries, ratings, ratings**3, 20, 0)
    assert found == pytest.approx((1, 0))
    # The order within a query is reversed, but a draw takes one item of each query.
    inside = np.tile([0.0, 0.1, 0.2], 10)
    found = sampled_correlation(queries, ratings + inside, ratings - inside, 20, 0)
    assert found == pytest.approx((1, 0))
    rng = np.random.default_rng(0)
    queries, a = rng.integers(0, 400, 3000), rng.normal(size=3000)
    b = a + rng.normal(size=3000)
    mean, deviation = sampled_correlation(queries, a, b, 300, 0)
    assert mean == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=0.02)
    # Fisher's approximation for 200 independent items.
    assert deviation == pytest.approx((1 - mean**2) / 200**0.5, rel=0.25)
    assert sampled_correlation(queries, a, b, 300, 0) == (mean, deviation)
    with pytest.raises(ValueError, match="3 queries; wanted at least 4"):
        sampled_correlation(np.arange(3), np.arange(3), np.arange(3), 2, 0)


@pytest.mark.parametrize(("r", "published"), [(0.552, 0.015), (0.676, 0.012)])
def test_pictures_as_queries_deviate_as_much_as_published(r, published):
    # Crisscrossed Captions' SITS has 5,000 pictures with five captions each, and 19,833
    # other pairs. VSE++ has 55.2 with a deviation of 1.5, and ALIGN 67.6 with 1.2.
    rng = np.random.default_rng(0)
    pictures = np.concatenate([np.arange(25_000) // 5, rng.integers(0, 5000, 19_833)])
    captions = np.concatenate([np.arange(25_000), rng.integers(0, 25_000, 19_833)])
    ratings = rng.normal(size=len(pictures))
    scores = r * ratings + (1 - r**2) ** 0.5 * rng.normal(size=len(pictures))
    mean, by_pictures = sampled_correlation(pictures, ratings, scores, 200, 0)
    _, by_captions = sampled_correlation(captions, ratings, scores, 200, 0)
    assert mean == pytest.approx(r, abs=0.03)
    assert by_pictures == pytest.approx(published, abs=0.003)
    assert by_captions < 0.6 * published
