import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.convolution import (
    depthwise_conv,
    grouped_conv,
    same_padding,
    tap_sum,
)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(7, 9), (8, 8), (2, 3), (1, 1)])
@pytest.mark.parametrize("batch", [3, 16])
def test_tap_sum_and_its_gradients_equal_the_grouped_convolution(
    batch, size, kernel, stride
):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, *size, 6))
    weights = jax.random.normal(keys[1], (kernel, kernel, 1, 6))
    padding = same_padding(size, kernel, stride)
    expected, expected_vjp = jax.vjp(
        lambda x, w: grouped_conv(x, w, stride, padding), x, weights
    )
    found, found_vjp = jax.vjp(lambda x, w: tap_sum(x, w, stride, padding), x, weights)
    cotangent = jax.random.normal(keys[2], expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(found_vjp(cotangent), expected_vjp(cotangent), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_platform_form_is_differentiable_under_jit():
    x, weights = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 1, 3))
    padding = ((1, 1), (1, 1))

    @jax.jit
    def total(x):
        return depthwise_conv(x, weights, 1, padding).sum()

    assert total(x) == 2 * 3 * (4 * 4 + 8 * 6 + 4 * 9)
    assert jax.grad(total)(x)[0, 0, 0, 0] == 4


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        (289, 3, 2, (1, 1)),
        (346, 3, 2, (0, 1)),
        (72, 5, 2, (1, 2)),
        (9, 5, 1, (2, 2)),
        (8, 1, 1, (0, 0)),
    ],
)
def test_same_padding_is_tensorflows(size, kernel, stride, padding):
    assert same_padding((size, size), kernel, stride) == (padding, padding)
