import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.kernels.convolution import (
    count_pieces,
    dense_conv,
    depthwise_conv,
    gpu_conv,
    grouped_conv,
    same_padding,
    tap_sum,
)


def run(convolve, x, weights, cotangent):
    """Returns a convolution's result and its gradients, from one compiled program."""

    @jax.jit
    def passes(x, weights, cotangent):
        out, pull = jax.vjp(convolve, x, weights)
        return out, *pull(cotangent)

    return passes(x, weights, cotangent)


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
    out_shape = (batch, *(-(-n // stride) for n in size), 6)
    cotangent = jax.random.normal(keys[2], out_shape)
    expected, *expected_gradients = run(
        lambda x, w: grouped_conv(x, w, stride, padding), x, weights, cotangent
    )
    found, *gradients = run(
        lambda x, w: tap_sum(x, w, stride, padding), x, weights, cotangent
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "forward", "backward"),
    [(jnp.float32, 1e-5, 1e-5), (jnp.bfloat16, 2e-3, 5e-3)],
)
@pytest.mark.parametrize(
    ("shape", "kernel", "channels", "stride"),
    [
        ((4, 9, 7, 3), 3, 16, 2),
        ((16, 8, 8, 24), 1, 48, 1),
        ((3, 5, 5, 40), 1, 8, 1),
        ((2, 6, 5, 5), 1, 6, 1),
        ((2, 7, 7, 4), 5, 3, 3),
    ],
)
def test_the_form_for_gpus_is_xlas_convolution(
    shape, kernel, channels, stride, dtype, forward, backward
):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape).astype(dtype)
    weights = jax.random.normal(keys[1], (kernel, kernel, shape[-1], channels))
    weights, padding = weights.astype(dtype), same_padding(shape[1:3], kernel, stride)
    out_shape = (shape[0], *(-(-n // stride) for n in shape[1:3]), channels)
    cotangent = jax.random.normal(keys[2], out_shape).astype(dtype)
    expected, *expected_gradients = run(
        lambda x, w: dense_conv(x, w, stride, padding), x, weights, cotangent
    )
    found, *gradients = run(
        lambda x, w: gpu_conv(x, w, stride, padding), x, weights, cotangent
    )
    assert difference(found, expected) < forward
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        assert mine.dtype == dtype
        assert difference(mine, theirs) < backward


def difference(found, wanted):
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def test_pieces_by_hand():
    # 128 images of 145 x 145 pixels: the largest divisor up to 160 of pixels / 8.
    assert count_pieces(128 * 145**2, 24, 144) == 145
    # 46,208 x (768 + 128) numbers read allow 26 pieces; 19 divides 46,208 / 8 = 5,776.
    assert count_pieces(128 * 19**2, 768, 128) == 19
    # The product reads only 29 numbers per number written, too few for two pieces.
    assert count_pieces(12_800, 3072, 512) == 1
    # The rows are no multiple of 8. At most 11 pieces read enough; 7 divides the rows.
    assert count_pieces(15 * 49, 8, 8) == 7
    assert count_pieces(1, 8, 8) == 1


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
