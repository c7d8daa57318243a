import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.losses import tiles
from align_jax.losses.sigmoid import sigmoid_loss
from tests.reference import embeddings, sigmoid_reference


@pytest.mark.parametrize("temperature", [1.0, 1 / 128])
@pytest.mark.parametrize(
    ("devices", "n", "tile", "kept"),
    [(1, 64, 24, 64), (1, 64, 24, 24), (8, 64, None, 64), (8, 2048, 1000, 0)],
)
def test_loss_and_gradients_equal_the_equation(
    mesh_of, monkeypatch, devices, n, tile, kept, temperature
):
    monkeypatch.setattr(tiles, "KEPT_COLUMNS", kept)
    ximg, ytxt = embeddings(n)
    ytxt[-1] = ytxt[0]  # a duplicate
    expected_loss, expected = sigmoid_reference(ximg, ytxt, temperature, -2.0)
    gradient = jax.value_and_grad(sigmoid_loss, (0, 1, 2, 3), has_aux=True)
    arguments = [jnp.asarray(a, jnp.float32) for a in (ximg, ytxt, temperature, -2.0)]
    mesh = mesh_of(devices)
    (loss, _), gradients = jax.jit(lambda *a: gradient(*a, mesh, tile=tile))(*arguments)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * scale)


def test_groups_are_whole_losses_of_their_pairs(mesh_of):
    x, y = (jnp.asarray(e, jnp.float32) for e in embeddings(32))
    s, b = jnp.float32(0.1), jnp.float32(-1.0)
    halves = [
        sigmoid_loss(x[half], y[half], s, b, mesh_of(2))[0]
        for half in (slice(16), slice(16, 32))
    ]
    limited, _ = sigmoid_loss(x, y, s, b, mesh_of(8), negatives=0.5)
    np.testing.assert_allclose(limited, np.mean(halves), rtol=1e-6)


def test_no_information_costs_n_log_2_and_aligned_pairs_less(mesh_of):
    x = jnp.eye(16)
    zero, far = jnp.float32(0.0), jnp.float32(-10.0)
    flat, metrics = sigmoid_loss(0 * x, 0 * x, jnp.float32(1.0), zero, mesh_of(4))
    np.testing.assert_allclose(flat, 16 * np.log(2), rtol=1e-6)
    assert metrics["i2t_accuracy"] == metrics["t2i_accuracy"] == 0
    aligned, metrics = sigmoid_loss(x, x, jnp.float32(0.05), far, mesh_of(4))
    assert aligned < 1e-2
    assert metrics["i2t_accuracy"] == metrics["t2i_accuracy"] == 1
