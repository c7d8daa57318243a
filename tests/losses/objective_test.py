import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.losses.objective import LossConfig, compute_loss, hold_temperature
from tests.reference import contrastive_reference, embeddings, sigmoid_reference


def loss_of(config, params, mesh):
    x, y = (jnp.asarray(e, jnp.float32) for e in embeddings(16))
    loss, metrics = compute_loss((x, y), None, params, LossConfig(**config), mesh)
    return float(loss), metrics


def test_each_kind_is_its_equation_at_either_form_of_the_temperature(mesh_of):
    mesh = mesh_of(4)
    for params in (
        {"temperature": jnp.float32(0.25)},
        {"log_temperature": jnp.log(jnp.float32(0.25))},
    ):
        params["logit_bias"] = jnp.float32(-1.0)
        loss, _ = loss_of({"negatives": 0.5, "tile": 3}, params, mesh)
        expected = sum(contrastive_reference(*embeddings(16), 0.25, 0.1, 2)[:2])
        assert loss == pytest.approx(expected, rel=1e-5)
        half, _ = loss_of({"reduction": "mean", "label_smoothing": 0.0}, params, mesh)
        expected = np.mean(contrastive_reference(*embeddings(16), 0.25, 0.0)[:2])
        assert half == pytest.approx(expected, rel=1e-5)
        loss, metrics = loss_of({"kind": "sigmoid"}, params, mesh)
        expected, _ = sigmoid_reference(*embeddings(16), 0.25, -1.0)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert metrics["logit_bias"] == -1.0


def test_cross_entropy_is_scikit_learn_s_and_smoothing_is_uniform(mesh_of):
    logits = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    labels = np.arange(16) % 5
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = sklearn.metrics.log_loss(labels, shares)
    for smoothing in (0.0, 0.2):
        config = LossConfig("cross_entropy", label_smoothing=smoothing)
        loss, metrics = compute_loss((logits,), labels, {}, config, mesh_of(4))
        uniform = -np.log(shares).mean()
        smoothed = (1 - smoothing) * expected + smoothing * uniform
        assert float(loss) == pytest.approx(smoothed, rel=1e-5)
        assert metrics["accuracy"] == np.mean(logits.argmax(1) == labels)
        for strange in (-1, 5):
            wrong = np.append(labels[1:], strange)
            loss, _ = compute_loss((logits,), wrong, {}, config, mesh_of(4))
            assert np.isnan(loss)
    with pytest.raises(ValueError, match="there are no labels"):
        compute_loss((logits,), None, {}, config, mesh_of(4))


def test_a_temperature_stays_at_or_above_its_floor():
    towers = {"image_tower": {"kernel": jnp.zeros(2)}}
    for name, low, high in (
        ("temperature", 0.01, 0.5),
        ("log_temperature", np.log(0.01), np.log(0.5)),
    ):
        for before, after in ((-100.0, low), (high, high)):
            found = hold_temperature(towers | {name: jnp.float32(before)}, 0.01)
            assert found[name] == pytest.approx(after)
            assert found["image_tower"] is towers["image_tower"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "triplet"}, "loss.kind is 'triplet'; known: softmax, sigmoid"),
        ({"reduction": "max"}, "loss.reduction is 'max'; known: sum, mean"),
        ({"precision": "low"}, "loss.precision is 'low'; known: default, high"),
        ({"label_smoothing": 1.0}, "config.label_smoothing is 1.0"),
        ({"temperature_floor": 0.0}, "temperature_floor is 0.0; wanted above 0"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        read_config(LossConfig, fields)
