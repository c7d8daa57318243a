import numpy as np
import pytest
import sklearn.metrics

from align_jax.evaluation import benchmark_scores
from align_jax.evaluation.benchmark_scores import (
    association_score,
    average_precisions,
    group_means,
    macro_f1,
    selection_hits,
)

TOLERANCE = 1e-6


def test_macro_f1_typed_by_hand():
    truth = np.array([0, 0, 1, 1, 2])
    predicted = np.array([0, 1, 1, 1, 3])  # class 3 has no picture
    # F1 of class 0: 2 * 1 / (2 + 1); of 1: 2 * 2 / (2 + 3); of 2: 0.
    assert macro_f1(predicted, truth) == pytest.approx((2 / 3 + 4 / 5) / 3)


def test_average_precision_typed_by_hand():
    scores = np.float32([[0.9, 0.5, 0.1], [0.8, 0.5, 0.2], [0.7, 0.5, 0.3]])
    positives = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]], bool)
    # The first class: precision 1/1 at rank 1 and 2/3 at rank 3. All pictures tie for
    # the second one: its positive is last, or stays first. The third has no positive.
    against = average_precisions(scores, positives)
    np.testing.assert_allclose(against, [(1 + 2 / 3) / 2, 1 / 3, 0])
    in_order = average_precisions(scores, positives, in_order=True)
    np.testing.assert_allclose(in_order, [(1 + 2 / 3) / 2, 1, 0])


def test_associations_typed_by_hand():
    right = np.array([True, True, False, False, False])
    assert association_score(np.float32([5, 4, 3, 2, 1]), right) == 1
    assert association_score(np.float32([5, 1, 3, 2, 1]), right) == pytest.approx(1 / 3)
    assert association_score(np.float32([1, 2, 3, 4, 5]), right) == 0
    tied = np.float32([4, 4, 4, 0, 0])  # the wrong one is chosen; by DataComp the later
    assert association_score(tied, right) == pytest.approx(1 / 3)
    assert association_score(tied, right[::-1], in_order=True) == 0
    assert association_score(tied, np.roll(right, 1), in_order=True) == 1
    assert association_score(tied, np.roll(right, 1)) == pytest.approx(1 / 3)


def test_group_means_typed_by_hand():
    found = group_means(np.array([1, 0, 1, 1]), np.array([4.0, 4.0, 2.0, 2.0]))
    assert found == {2: 1.0, 4: 0.5}


def test_selections_typed_by_hand():
    # Two pictures and two captions: all right, the captions alone, the pictures alone,
    # and all equal, where argmax chooses the first one for each of the two.
    scores = np.float32(
        [
            [[3, 1], [1, 3]],
            [[3, 1], [4, 5]],
            [[3, 4], [1, 5]],
            [[1, 1], [1, 1]],
            [[3, 3], [1, 3]],
        ]
    )
    captions, pictures = selection_hits(scores)
    np.testing.assert_array_equal(captions, [True, True, False, False, False])
    np.testing.assert_array_equal(pictures, [True, False, True, False, False])
    captions, pictures = selection_hits(scores, in_order=True)
    np.testing.assert_array_equal(captions, [True, True, False, False, True])
    np.testing.assert_array_equal(pictures, [True, False, True, False, False])
    # One picture, its caption and wrong ones: in order, a constant model is right.
    scores = np.float32([[[2, 1, 1]], [[1, 2, 1]], [[1, 1, 1]], [[1 - 1e-7, 1, 0]]])
    captions, pictures = selection_hits(scores)
    np.testing.assert_array_equal(captions, [True, False, False, False])
    assert pictures.all()
    captions, _ = selection_hits(scores, in_order=True)
    np.testing.assert_array_equal(captions, [True, False, True, True])


def draw(seed, shape, ties):
    """Draws scores; with ties, from few values, all far apart."""
    random = np.random.default_rng(seed)
    if ties:
        return np.float32(random.integers(0, 5, shape)) / 8
    return np.float32(random.permutation(np.prod(shape)).reshape(shape)) / 1e3


@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_scikit_learn_on_random_predictions(seed):
    random = np.random.default_rng(seed)
    truth, predicted = random.integers(0, 12, (2, 40))
    expected = sklearn.metrics.f1_score(
        truth, predicted, average="macro", labels=np.unique(truth), zero_division=0
    )
    assert macro_f1(predicted, truth) == pytest.approx(expected, abs=TOLERANCE)
    scores, positives = draw(seed, (40, 6), False), random.random((40, 6)) < 0.3
    found = average_precisions(scores, positives)
    for k in range(6):
        expected = sklearn.metrics.average_precision_score(
            positives[:, k], scores[:, k]
        )
        assert found[k] == pytest.approx(expected, abs=TOLERANCE)
    means = group_means(truth == predicted, truth)
    recalls = sklearn.metrics.recall_score(
        truth, predicted, average=None, labels=np.unique(truth), zero_division=0
    )
    np.testing.assert_allclose([*means.values()], recalls, atol=TOLERANCE)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_a_plain_statement_with_ties(seed, ties):
    random = np.random.default_rng(seed)
    scores, positives = draw(seed, (30, 4), ties), random.random((30, 4)) < 0.4
    for in_order in (False, True):
        found = average_precisions(scores, positives, in_order)
        for k in range(4):
            rows = sorted(  # by falling score; then the wrong ones, or the earlier ones
                range(30),
                key=lambda i: (-scores[i, k], i if in_order else positives[i, k]),
            )
            hits, precisions = 0, []
            for rank, row in enumerate(rows, 1):
                if positives[row, k]:
                    hits += 1
                    precisions.append(hits / rank)
            assert found[k] == pytest.approx(np.mean(precisions), abs=TOLERANCE)
        right = positives[:12, 0]
        if right.any():
            order = sorted(
                range(12), key=lambda i: (scores[i, 0], i if in_order else not right[i])
            )
            chosen = np.isin(np.arange(12), order[-right.sum() :])
            expected = sklearn.metrics.jaccard_score(right, chosen)
            score = association_score(scores[:12, 0], right, in_order)
            assert score == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (3, 2), (2, 4)])
def test_selections_agree_with_a_plain_statement_with_ties(shape, ties):
    scores = draw(0, (40, *shape), ties)

    def right(candidates, i, in_order):
        if in_order:
            return [*candidates].index(max(candidates)) == i
        return all(candidates[i] > c for j, c in enumerate(candidates) if j != i)

    for in_order in (False, True):
        for side, found in enumerate(selection_hits(scores, in_order)):
            expected = []
            for matrix in scores:
                queries = matrix.T if side else matrix
                rows = range(min(shape))
                expected.append(all(right(queries[i], i, in_order) for i in rows))
            assert np.mean(found) == pytest.approx(np.mean(expected), abs=TOLERANCE)
            np.testing.assert_array_equal(found, expected)


def test_rounding_errors_are_ties():
    close = np.float32([0.5, 0.5 + 1e-7, 0.5 - 1e-7])
    right = np.array([False, True, False])
    assert association_score(close, right) == 0
    assert average_precisions(close[:, None], right[:, None]) == pytest.approx(1 / 3)
    assert benchmark_scores.ROUNDING < 1e-5
