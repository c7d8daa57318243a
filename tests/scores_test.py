import math

import numpy as np
import pytest

from align_jax.scores import chance_recall, positive_ranks, recall_at


def test_ranks_by_hand():
    scores = np.array(
        [
            [0.9, 0.1, 0.5],  # the right one is first
            [0.4, 0.6, 0.5],  # two right ones: the better is second
            [0.2, 0.2, 0.1],  # a tie counts against the model
            [0.7, 0.7, 0.7],  # two right ones tie with a wrong one
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
        assert recall_at(ranks, k) == 0.0 < chance_recall(positives, k)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_an_error(bad):
    scores = np.ones((2, 2))
    scores[1, 0] = bad
    with pytest.raises(FloatingPointError, match="1 of 4 scores are not finite"):
        positive_ranks(scores, np.eye(2, dtype=bool))


def test_a_query_without_a_positive_is_an_error():
    with pytest.raises(ValueError, match="query 1 has no positive"):
        positive_ranks(np.ones((2, 2)), np.array([[1, 0], [0, 0]], bool))


def test_chance_by_hand_and_by_simulation():
    assert chance_recall(np.eye(10, dtype=bool), 1) == pytest.approx(0.1)
    assert chance_recall(np.eye(3, dtype=bool), 5) == 1.0
    two = np.zeros((1, 10), bool)
    two[0, :2] = True
    assert chance_recall(two, 5) == pytest.approx(
        1 - math.comb(8, 5) / math.comb(10, 5)
    )
    rng = np.random.default_rng(0)
    positives = rng.random((6, 30)) < 0.2
    positives[:, 0] = True
    drawn = [
        recall_at(positive_ranks(rng.random((6, 30)), positives), 3)
        for _ in range(4000)
    ]
    assert chance_recall(positives, 3) == pytest.approx(np.mean(drawn), abs=0.01)
