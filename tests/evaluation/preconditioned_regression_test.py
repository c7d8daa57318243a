import functools

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression as Sklearn

from align_jax.evaluation.linear_classifier import classify
from align_jax.evaluation.preconditioned_regression import PreconditionedRegression


@pytest.fixture(scope="module")
def digits():
    """Returns (features, labels) of scikit-learn's digits, for training and test."""
    data = load_digits()
    features, labels = data.data.astype(np.float32), data.target
    return (features[:1200], labels[:1200]), (features[1200:], labels[1200:])


def objective(weights, bias, features, labels, penalty):
    logits = np.float64(features) @ weights + bias
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return losses.sum() + penalty / 2 * np.square(weights).sum()


@pytest.fixture(scope="module")
def fit_by_scikit_learn(digits):
    (features, labels), _ = digits

    @functools.cache
    def fit(penalty):
        model = Sklearn(C=1 / penalty, solver="newton-cg", tol=1e-8)
        return model.fit(np.float64(features), labels)

    return fit


@pytest.mark.parametrize("penalty", [1.0, 30.0, 1e3])
@pytest.mark.parametrize("devices", [1, 8])
def test_digits_are_classified_as_at_the_optimum(
    digits, fit_by_scikit_learn, mesh_of, penalty, devices
):
    train, test = digits
    ours = PreconditionedRegression(*train, 10, mesh_of(devices)).fit(penalty)
    theirs = fit_by_scikit_learn(penalty)
    best = objective(theirs.coef_.T, theirs.intercept_, *train, penalty)
    excess = objective(*ours, *train, penalty) - best
    assert excess / len(train[1]) < 1e-4  # nats per picture; W = 0 costs log(10)
    accuracy = np.mean(classify(ours, test[0]).argmax(1) == test[1])
    assert accuracy >= theirs.score(*test) - 0.002


def test_directions_of_very_different_spread_are_fitted(mesh_of):
    random = np.random.default_rng(0)
    spread = np.geomspace(1e-2, 1e1, 20)
    features = (random.standard_normal((600, 20)) * spread + 30).astype(np.float32)
    truth = random.standard_normal((20, 4)) / spread[:, None]
    labels = ((features - 30) @ truth).argmax(1)
    ours = PreconditionedRegression(features, labels, 4, mesh_of(3)).fit(1e-4)
    assert np.mean(classify(ours, features).argmax(1) == labels) > 0.99


def test_a_fit_from_a_neighbouring_penalty_is_that_from_nothing(digits, mesh_of):
    train, _ = digits
    alone = PreconditionedRegression(*train, 10, mesh_of(1)).fit(1.0)
    probe = PreconditionedRegression(*train, 10, mesh_of(1))
    probe.fit(100.0)
    values = [objective(*found, *train, 1.0) for found in (alone, probe.fit(1.0))]
    assert abs(values[0] - values[1]) / len(train[1]) < 1e-4


def test_fewer_pictures_than_features_are_fitted_at_any_penalty(mesh_of):
    random = np.random.default_rng(0)
    features = np.abs(random.standard_normal((40, 96), np.float32))
    labels = np.arange(40) % 3
    probe = PreconditionedRegression(features, labels, 3, mesh_of(1))
    for penalty in (1.0, 1e-3, 1e-6):
        found = classify(probe.fit(penalty), features)
        assert np.isfinite(found).all()
        assert (found.argmax(1) == labels).all()
