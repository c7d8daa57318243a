import jax
import jax.numpy as jnp
import numpy as np

from align_jax.models.batch_norm import BatchNorm, mean_over_groups
from align_jax.models.layers import (
    dropout,
    keep_mask,
    kept_indices,
    survival_scales,
)


def test_a_mask_depends_on_its_virtual_core_only():
    key = jax.random.key(3)
    whole = keep_mask(key, jnp.arange(4), (8, 5), 0.5)
    later_half = keep_mask(key, jnp.arange(2, 4), (4, 5), 0.5)
    np.testing.assert_array_equal(whole[4:], later_half)
    assert not np.array_equal(whole[:4], later_half)


def test_kept_indices_depend_on_their_virtual_core_only():
    key = jax.random.key(3)
    whole = kept_indices(key, jnp.arange(4), (64, 6), 4)
    later_half = kept_indices(key, jnp.arange(2, 4), (32, 6), 4)
    np.testing.assert_array_equal(whole[32:], later_half)
    assert (np.diff(whole, axis=1) > 0).all()
    assert len(np.unique(whole, axis=0)) == 15  # 4 of 6
    assert np.unique(whole).tolist() == [*range(6)]


def test_dropout_keeps_the_mean_and_is_the_identity_without_a_key():
    x, cores = jnp.ones((64, 1000)), jnp.arange(8)
    np.testing.assert_array_equal(dropout(x, None, cores, 0.25), x)
    dropped = np.asarray(dropout(x, jax.random.key(0), cores, 0.25))
    assert abs(dropped.mean() - 1.0) < 0.01
    np.testing.assert_allclose(np.unique(dropped), [0.0, 4 / 3], rtol=1e-6)


def test_stochastic_depth_keeps_the_mean_and_differs_by_block():
    never, *often = survival_scales(
        jax.random.key(1), jnp.arange(8), 4096, [0.0, 0.2, 0.2]
    )
    np.testing.assert_array_equal(never, np.ones(4096))
    for scales in often:
        np.testing.assert_allclose(np.unique(scales), [0.0, 1.25], rtol=1e-6)
        assert abs(scales.mean() - 1.0) < 0.05
    assert not np.array_equal(*often)


def test_batch_norm_normalises_each_group_by_itself_and_follows_the_running_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (6, 4, 5, 3)).astype(np.float32)
    scale, bias = np.array([1.0, 2.0, 0.5]), np.array([0.0, 1.0, -1.0])
    layer = BatchNorm(group_size=2, momentum=0.9)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": jnp.ones(3), "var": jnp.full(3, 2.0)},
    }
    out, changed = layer.apply(variables, x, True, mutable=["batch_stats"])

    groups = x.astype(np.float64).reshape(3, 2 * 4 * 5, 3)
    mean, var = groups.mean(1), groups.var(1)  # (groups, C)
    normal = (groups - mean[:, None]) / np.sqrt(var[:, None] + 1e-3)
    expected = (normal * scale + bias).reshape(x.shape)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    of_groups = 0.9 + 0.1 * mean
    np.testing.assert_allclose(changed["batch_stats"]["mean"], of_groups, rtol=1e-5)
    running = mean_over_groups(changed["batch_stats"])
    np.testing.assert_allclose(running["mean"], 0.9 + 0.1 * mean.mean(0), rtol=1e-5)
    np.testing.assert_allclose(running["var"], 1.8 + 0.1 * var.mean(0), rtol=1e-5)

    frozen = layer.apply(variables, x, False)
    expected = (x - 1.0) / np.sqrt(2.0 + 1e-3) * scale + bias
    np.testing.assert_allclose(frozen, expected, rtol=1e-5, atol=1e-5)


def test_frozen_statistics_are_used_in_training_and_stay():
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
    variables = {
        "params": {"scale": jnp.array([1.0, 2.0]), "bias": jnp.zeros(2)},
        "batch_stats": {"mean": jnp.ones(2), "var": jnp.full(2, 2.0)},
    }
    frozen = BatchNorm(group_size=2, frozen=True)
    out, changed = frozen.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_array_equal(out, BatchNorm(2).apply(variables, x, False))
    jax.tree.map(
        np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"]
    )
