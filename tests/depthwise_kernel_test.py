from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.convolution import PADDINGS, grouped_conv
from align_jax.models.depthwise_kernel import (
    choose_tile,
    convolve,
    depthwise,
    divisor,
)
from align_jax.models.efficientnet import (
    VARIANTS,
    EfficientNetConfig,
    expand_stages,
)


def distance(found, expected) -> float:
    """Norm of the difference over the norm of what is expected."""
    found, expected = (np.asarray(a, np.float32) for a in (found, expected))
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-6)


def draw(seed: int, batch: int, size: tuple[int, int], channels: int, k: int):
    """x, kernel and a key for the cotangent."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (batch, *size, channels))
    return x, jax.random.normal(keys[1], (k, k, 1, channels)), keys[2]


def compare(x, kernel, key, stride, padding, dtype):
    """Distances of the output and both gradients from the plain form in float32."""
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    exact = [a.astype(jnp.float32) for a in (x, kernel)]
    plain = lambda x, kernel: grouped_conv(x, kernel, stride, padding)
    expected, expected_vjp = jax.vjp(plain, *exact)
    ours = lambda x, kernel: depthwise(x, kernel, stride, padding, True)
    found, found_vjp = jax.vjp(ours, x, kernel)
    assert found.shape == expected.shape and found.dtype == dtype
    cotangent = jax.random.normal(key, expected.shape).astype(dtype)
    gradients = found_vjp(cotangent)
    assert [g.dtype for g in gradients] == [dtype, dtype]
    others = expected_vjp(cotangent.astype(jnp.float32))
    return distance(found, expected), *map(distance, gradients, others)


@pytest.mark.parametrize("rule", PADDINGS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("size", [(7, 10), (1, 1), (2, 5)])
def test_output_and_gradients_equal_the_grouped_convolution(rule, stride, k, size):
    padding = PADDINGS[rule](size, k, stride)
    drawn = draw(0, 2, size, 24, k)
    assert max(compare(*drawn, stride, padding, jnp.float32)) < 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_any_shape_and_padding(seed):
    rng = np.random.default_rng(seed)
    k, stride = int(rng.choice([3, 5])), int(rng.choice([1, 2]))
    size = tuple(int(n) for n in rng.integers(k, 14, 2))
    padding = tuple(tuple(int(n) for n in rng.integers(0, k, 2)) for _ in range(2))
    drawn = draw(seed, 3, size, int(rng.choice([8, 40, 136])), k)
    assert max(compare(*drawn, stride, padding, jnp.float32)) < 1e-5


@pytest.mark.parametrize(("k", "stride"), [(3, 1), (5, 1), (5, 2)])
def test_bfloat16_is_summed_in_float32(k, stride):
    padding = PADDINGS["same"]((9, 9), k, stride)
    forward, *gradients = compare(
        *draw(1, 2, (9, 9), 48, k), stride, padding, "bfloat16"
    )
    assert forward < 2e-3 and max(gradients) < 5e-3
