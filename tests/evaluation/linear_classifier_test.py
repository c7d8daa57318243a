import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression as Sklearn
from sklearn.linear_model import Ridge

from align_jax.evaluation.linear_classifier import (
    BIAS,
    LogisticRegression,
    classify,
    fit_ridge,
    search_penalty,
)


@pytest.fixture(scope="module")
def digits():
    """Returns (features, labels) of scikit-learn's digits, for training and test."""
    data = load_digits()
    features, labels = data.data.astype(np.float32), data.target
    return (features[:1200], labels[:1200]), (features[1200:], labels[1200:])


def hits(train, test, classes, penalty, mesh):
    """Returns the numbers of test pictures that ours and CLIP's call classify."""
    ours = LogisticRegression(*train, classes, mesh).fit(penalty)
    theirs = Sklearn(random_state=0, C=1 / penalty, max_iter=1000).fit(*train)
    features, labels = test
    found = classify(ours, features).argmax(1), theirs.predict(features)
    return [np.count_nonzero(f == labels) for f in found]


@pytest.mark.parametrize("exponent", range(-6, 3))
def test_digits_are_classified_as_by_scikit_learn(exponent, mesh_of):
    # Each picture is tested once. The training pictures can be separated, so that at
    # small penalties the result depends on the search's path.
    features, labels = load_digits(return_X_y=True)
    features = features.astype(np.float32)
    folds, both = np.arange(len(labels)) * 3 // len(labels), np.zeros(2, int)
    for fold in range(3):
        parts = [(features[at], labels[at]) for at in (folds != fold, folds == fold)]
        both += hits(*parts, 10, 10.0**exponent, mesh_of(1))
    assert abs(both[0] - both[1]) <= 0.005 * len(labels)
    assert both[1] > 0.88 * len(labels)


def test_two_classes_are_classified_as_by_scikit_learn(mesh_of):
    features, labels = load_breast_cancer(return_X_y=True)
    scaled = ((features - features.mean(0)) / features.std(0)).astype(np.float32)
    train, test = ((scaled[i::2], labels[i::2]) for i in (0, 1))
    for penalty in (1e-4, 1.0, 1e2):
        both = hits(train, test, 2, penalty, mesh_of(3))
        assert abs(both[0] - both[1]) <= 1  # of 284
    ours = LogisticRegression(*train, 2, mesh_of(3)).fit(30.0)
    theirs = Sklearn(C=1 / 30.0).fit(*train)
    np.testing.assert_allclose(ours.weights[:, 1], theirs.coef_[0], atol=1e-3)
    np.testing.assert_allclose(ours.bias[1], theirs.intercept_[0], atol=1e-3)
    assert not ours.weights[:, 0].any()


def test_a_fit_does_not_depend_on_earlier_ones(digits, mesh_of):
    train, _ = digits
    alone = LogisticRegression(*train, 10, mesh_of(1)).fit(1e-2)
    probe = LogisticRegression(*train, 10, mesh_of(1))
    probe.fit(100.0)
    for found, wanted in zip(probe.fit(1e-2), alone, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_fewer_pictures_than_features_are_fitted_at_any_penalty(mesh_of):
    random = np.random.default_rng(0)
    features = np.abs(random.standard_normal((40, 96), np.float32))
    labels = np.arange(40) % 3
    probe = LogisticRegression(features, labels, 3, mesh_of(1))
    for penalty in (1.0, 1e-3, 1e-6):
        found = classify(probe.fit(penalty), features)
        assert np.isfinite(found).all()
        assert (found.argmax(1) == labels).all()


def test_ridge_is_scikit_learn_s_with_a_penalised_bias(digits):
    (features, labels), _ = digits
    for count in (40, 400):  # fewer and more pictures than features
        rows, targets = features[:count], 2.0 * np.eye(10)[labels[:count]] - 1
        ours = classify(fit_ridge(rows, labels[:count], 10, 1024.0), features)
        mean, deviation = rows.mean(0), rows.std(0) + 1e-5
        scaled = np.pad((features - mean) / deviation, [(0, 0), (0, 1)])
        scaled[:, -1] = BIAS
        theirs = Ridge(1024.0, fit_intercept=False).fit(scaled[:count], targets)
        np.testing.assert_allclose(ours, theirs.predict(scaled), atol=2e-4)


def test_the_search_narrows_down_to_the_best_penalty():
    tried = []

    def score(penalty):
        tried.append(np.log10(penalty))
        return -abs(tried[-1] - 2.6)

    assert np.log10(search_penalty(score)) == pytest.approx(2.625)
    assert tried[:7] == pytest.approx([6, 4, 2, 0, -2, -4, -6])
    assert len(tried) == len(set(tried)) <= 7 + 2 * 4
    assert search_penalty(lambda penalty: 1.0) == 1e6  # the largest wins a tie


def test_features_that_are_no_numbers_are_refused(digits, mesh_of):
    (features, labels), _ = digits
    features = features.copy()
    features[7, 3] = np.nan
    with pytest.raises(
        FloatingPointError, match=r"1 of 1200 .* the first is picture 7"
    ):
        LogisticRegression(features, labels, 10, mesh_of(1))
    with pytest.raises(FloatingPointError, match="1 of 1200"):
        fit_ridge(features, labels, 10, 1.0)
