from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.convolution import PADDINGS, grouped_conv
from align_jax.models.depthwise_kernel import (
    Tile,
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


@pytest.mark.parametrize(
    ("size", "k", "stride", "rule"),
    [
        ((7, 10), 5, 1, "same"),
        ((6, 9), 5, 2, "keras"),
        ((9, 7), 5, 2, "same"),
        ((2, 5), 5, 2, "keras"),
        ((1, 1), 5, 1, "same"),
        ((8, 11), 3, 1, "same"),
        ((9, 6), 3, 2, "keras"),
    ],
)
def test_output_and_gradients_equal_the_grouped_convolution(size, k, stride, rule):
    padding = PADDINGS[rule](size, k, stride)
    drawn = draw(0, 2, size, 24, k)
    assert max(compare(*drawn, stride, padding, jnp.float32)) < 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_any_shape_and_padding(seed):
    rng = np.random.default_rng(seed)
    k, stride = int(rng.choice([3, 5])), int(rng.choice([1, 2]))
    size = tuple(int(n) for n in rng.integers(k, 14, 2))
    padding = tuple(tuple(int(n) for n in rng.integers(0, k, 2)) for _ in range(2))
    drawn = draw(seed, 3, size, int(rng.choice([8, 40, 136])), k)
    assert max(compare(*drawn, stride, padding, jnp.float32)) < 1e-5


@pytest.mark.parametrize(("k", "stride"), [(5, 1), (3, 2)])
def test_bfloat16_is_summed_in_float32(k, stride):
    padding = PADDINGS["same"]((9, 9), k, stride)
    drawn = draw(1, 2, (9, 9), 48, k)
    forward, *gradients = compare(*drawn, stride, padding, jnp.bfloat16)
    assert forward < 2e-3 and max(gradients) < 5e-3


@pytest.mark.parametrize("columns", [1, 3, 7])
def test_tiles_change_nothing(columns):
    x, kernel, _ = draw(2, 1, (5, 13), 40, 5)
    padding = ((2, 2), (2, 2))
    expected = grouped_conv(x, kernel, 1, padding)
    found = convolve(x, kernel, 1, padding, Tile(columns, 16, 2), interpret=True)
    assert distance(found, expected) < 1e-5


def layers(variant: str, image_size: int):
    """(H, C, k, stride) of the different depthwise layers."""
    size, found = -(-image_size // 2), {}
    for stage in expand_stages(EfficientNetConfig(*VARIANTS[variant])):
        for block in stage:
            channels = block.channels_in * block.expansion
            found[size, channels, block.kernel, block.stride] = None
            size = -(-size // block.stride)
    return list(found)


@pytest.mark.parametrize("variant", ["b5", "b7"])
def test_kernels_lower_for_gpus(variant):
    def both(x, kernel, stride, padding):
        y, vjp = jax.vjp(partial(depthwise, stride=stride, padding=padding), x, kernel)
        return vjp(y)

    for size, channels, k, stride in layers(variant, 289):
        padding = PADDINGS["same"]((size, size), k, stride)
        x = jax.ShapeDtypeStruct((128, size, size, channels), jnp.bfloat16)
        kernel = jax.ShapeDtypeStruct((k, k, 1, channels), jnp.bfloat16)
        traced = jax.jit(both, static_argnums=(2, 3)).trace(x, kernel, stride, padding)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("xla.gpu.triton") + text.count("triton_kernel_call") == 3


def test_divisor_and_tile_by_hand():
    assert [divisor(128, n) for n in (1, 3, 200)] == [1, 2, 128]
    assert divisor(6, 4) == 3
    # 5 groups of 4 columns times 48 channels fill 240 of 256 lanes.
    assert choose_tile(19, 1056, 5, 4, 4) == Tile(4, 48, 4)
