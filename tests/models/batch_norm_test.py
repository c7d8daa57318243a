"""Compares fused normalisation, activation and gate with the same written plainly."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.devices.kernel_choice import Kernels
from align_jax.models.batch_norm import EPSILON, Form, normalise


def plain(x, scale, bias, excite, group_size, swish):
    """Computes `normalise` in float32, with its gradient left to JAX."""
    groups = x.astype(jnp.float32).reshape(-1, group_size, *x.shape[1:])
    axes = (1, 2, 3)
    mean, var = groups.mean(axes, keepdims=True), groups.var(axes, keepdims=True)
    scale, bias = scale.reshape(1, 1, 1, 1, -1), bias.reshape(1, 1, 1, 1, -1)
    out = (groups - mean) / jnp.sqrt(var + EPSILON) * scale + bias
    out = out.reshape(x.shape)
    out = nn.swish(out) if swish else out
    if excite is None:
        return out
    reduce, expand = excite["reduce"], excite["expand"]
    hidden = nn.swish(out.mean((1, 2)) @ reduce["kernel"] + reduce["bias"][None])
    gate = nn.sigmoid(hidden @ expand["kernel"] + expand["bias"][None])
    return out * gate[:, None, None]


def make_case(seed, dtype):
    """Draws arguments of random sizes and a cotangent."""
    random = np.random.default_rng(seed)
    group_size, groups = random.integers(1, 4, 2)
    height, width, channels = random.integers(1, 14, 3)
    channels, reduced = 8 * channels, int(random.integers(1, 6))
    shape = (group_size * groups, height + 1, width + 1, channels)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    x, cotangent = (draw(*shape).astype(dtype) for _ in range(2))
    excite = {
        "reduce": {"kernel": draw(channels, reduced), "bias": draw(reduced)},
        "expand": {"kernel": draw(reduced, channels), "bias": draw(channels)},
    }
    x = (2.0 * x + 1.0).astype(dtype)
    return (
        (x, 1.0 + 0.3 * draw(channels), draw(channels), excite),
        cotangent,
        group_size,
    )


def difference(found, wanted):
    """Returns the largest relative distance between two trees of arrays."""

    def of(a, b):
        a, b = (np.asarray(v, np.float64) for v in (a, b))
        return np.linalg.norm(a - b) / np.linalg.norm(b)

    return max(jax.tree.leaves(jax.tree.map(of, found, wanted)))


@pytest.mark.parametrize("kind", ["plain", "interpret"])
@pytest.mark.parametrize("form", ["linear", "swish", "gated"])
@pytest.mark.parametrize(
    ("seed", "dtype", "forward", "backward"),
    [
        (0, jnp.float32, 1e-5, 1e-5),
        (2, jnp.bfloat16, 2e-3, 5e-3),
        # Other random sizes.
        pytest.param(1, jnp.float32, 1e-5, 1e-5, marks=pytest.mark.pods),
        pytest.param(3, jnp.bfloat16, 2e-3, 5e-3, marks=pytest.mark.pods),
    ],
)
def test_fused_is_plain(kind, form, seed, dtype, forward, backward):
    arguments, cotangent, group_size = make_case(seed, dtype)
    if form != "gated":
        arguments = (*arguments[:3], None)
    swish = form != "linear"
    fused = Form(int(group_size), swish, Kernels(kind))
    found, pull = jax.vjp(lambda *a: normalise(*a, fused)[0], *arguments)
    wanted, pull_plain = jax.vjp(lambda *a: plain(*a, group_size, swish), *arguments)
    assert found.dtype == dtype
    assert difference(found, wanted) < forward
    gradients = pull(cotangent), pull_plain(cotangent.astype(jnp.float32))
    assert difference(*gradients) < backward
