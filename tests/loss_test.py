import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.loss import contrastive_loss


def embeddings(n, d=24, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, n, d))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(ximg, ytxt, temperature, smoothing):
    """The paper's equation in float64, one direction at a time."""
    n = len(ximg)
    z = ximg @ ytxt.T / temperature
    target = (1 - smoothing) * np.eye(n) + smoothing / n

    def direction(z):
        shifted = z - z.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return -(target * log_p).sum(1).mean(), (np.exp(log_p) - target) / n

    i2t, to_rows = direction(z)
    t2i, to_columns = direction(z.T)
    to_z = to_rows + to_columns.T
    gradients = (
        to_z @ ytxt / temperature,
        to_z.T @ ximg / temperature,
        -(to_z * z).sum() / temperature,
    )
    return i2t, t2i, gradients


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("n", [8, 64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 1 / 128])
def test_loss_and_gradients_equal_the_equation(
    mesh_of, devices, n, smoothing, temperature
):
    ximg, ytxt = embeddings(n)
    ytxt[3] = ytxt[2]  # a duplicate
    i2t, t2i, expected = reference(ximg, ytxt, temperature, smoothing)

    @jax.jit
    def loss(x, y, s):
        return contrastive_loss(x, y, s, mesh_of(devices), smoothing)

    arguments = [jnp.asarray(a, jnp.float32) for a in (ximg, ytxt, temperature)]
    value, metrics = loss(*arguments)
    np.testing.assert_allclose(value, i2t + t2i, rtol=1e-5)
    np.testing.assert_allclose(metrics["i2t_loss"], i2t, rtol=1e-5)
    np.testing.assert_allclose(metrics["t2i_loss"], t2i, rtol=1e-5)
    found = jax.grad(lambda *a: loss(*a)[0], (0, 1, 2))(*arguments)
    for mine, theirs in zip(found, expected, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * scale)


def test_no_information_costs_log_n_a_direction_and_ties_count_as_wrong(mesh_of):
    same = jnp.tile(jnp.eye(1, 5), (16, 1))
    value, metrics = contrastive_loss(same, same, jnp.float32(0.1), mesh_of(4), 0.1)
    np.testing.assert_allclose(value, 2 * np.log(16), rtol=1e-6)
    assert metrics["i2t_accuracy"] == metrics["t2i_accuracy"] == 0


def test_swapping_towers_swaps_directions_and_order_does_not_matter(mesh_of):
    x, y = (jnp.asarray(e, jnp.float32) for e in embeddings(16))
    mesh, s = mesh_of(2), jnp.float32(0.2)
    value, metrics = contrastive_loss(x, y, s, mesh)
    swapped, swapped_metrics = contrastive_loss(y, x, s, mesh)
    np.testing.assert_allclose(value, swapped, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["i2t_loss"], swapped_metrics["t2i_loss"], rtol=1e-6
    )
    order = np.random.default_rng(1).permutation(16)
    shuffled, _ = contrastive_loss(x[order], y[order], s, mesh)
    np.testing.assert_allclose(value, shuffled, rtol=1e-6)


def test_aligning_a_pair_lowers_the_loss(mesh_of):
    x, y = (jnp.asarray(e, jnp.float32) for e in embeddings(16))
    mesh, s = mesh_of(8), jnp.float32(0.2)
    before, _ = contrastive_loss(x, y, s, mesh)
    after, _ = contrastive_loss(x, y.at[3].set(x[3]), s, mesh)
    aligned, metrics = contrastive_loss(x, x, s, mesh)
    assert aligned < after < before
    assert metrics["i2t_accuracy"] == metrics["t2i_accuracy"] == 1
