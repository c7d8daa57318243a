from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.kernels.convolution import PADDINGS, grouped_conv
from align_jax.kernels.depthwise_kernel import convolve, depthwise, divisor
from align_jax.kernels.depthwise_lanes import LaneLayout, choose_layout
from align_jax.kernels.depthwise_programs import assembly


def distance(found, expected) -> float:
    """Returns the norm of the difference over the norm of the expected array."""
    found, expected = (np.asarray(a, np.float32) for a in (found, expected))
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-6)


def draw(seed: int, batch: int, size: tuple[int, int], channels: int, k: int):
    """Returns x, a kernel, and a key for the cotangent."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (batch, *size, channels))
    return x, jax.random.normal(keys[1], (k, k, 1, channels)), keys[2]


def compare(x, kernel, key, stride, padding, dtype=jnp.float32):
    """Returns distances of output and both gradients from the plain form in float32."""

    def run(form, x, kernel, key):
        y, vjp = jax.vjp(lambda x, w: form(x, w, stride, padding), x, kernel)
        cotangent = jax.random.normal(key, y.shape).astype(dtype)
        return y, *vjp(cotangent.astype(y.dtype))

    x, kernel = x.astype(dtype), kernel.astype(dtype)
    exact = [a.astype(jnp.float32) for a in (x, kernel)]
    expected = jax.jit(partial(run, grouped_conv))(*exact, key)
    interpreted = partial(depthwise, interpret=True)
    found = jax.jit(partial(run, interpreted))(x, kernel, key)
    assert [a.shape for a in found] == [a.shape for a in expected]
    assert {a.dtype for a in found} == {jnp.dtype(dtype)}
    return [distance(*pair) for pair in zip(found, expected, strict=True)]


@pytest.mark.parametrize(
    ("size", "k", "stride", "rule"),
    [
        ((7, 10), 5, 1, "same"),
        ((6, 9), 5, 2, "keras"),
        ((9, 6), 3, 2, "keras"),
    ],
)
def test_output_and_gradients_equal_xlas(size, k, stride, rule):
    padding = PADDINGS[rule](size, k, stride)
    drawn = draw(0, 2, size, 24, k)
    assert max(compare(*drawn, stride, padding)) < 1e-5


@pytest.mark.parametrize("seed", [6, 1])
def test_any_shape_and_padding(seed):
    rng = np.random.default_rng(seed)
    k, stride = int(rng.choice([3, 5])), int(rng.choice([1, 2]))
    size = tuple(int(n) for n in rng.integers(k, 12, 2))
    padding = tuple(tuple(int(n) for n in rng.integers(0, k, 2)) for _ in range(2))
    drawn = draw(seed, 3, size, int(rng.choice([8, 40, 136])), k)
    assert max(compare(*drawn, stride, padding)) < 1e-5


def test_bfloat16_is_summed_in_float32():
    drawn = draw(1, 2, (9, 4), 48, 3)
    forward, *gradients = compare(*drawn, 1, ((1, 1), (1, 1)), jnp.bfloat16)
    assert forward < 2e-3
    assert max(gradients) < 5e-3


@pytest.mark.parametrize("layout", [LaneLayout(1, 16, 2), LaneLayout(3, 40, 1)])
def test_layouts_change_nothing(layout):
    x, kernel, _ = draw(2, 1, (5, 13), 40, 3)
    padding = ((1, 1), (1, 1))
    expected = grouped_conv(x, kernel, 1, padding)
    found = convolve(x, kernel, 1, padding, layout, interpret=True)
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("size", "channels", "k", "stride"),
    [(145, 192, 3, 2), (73, 288, 5, 2), (10, 2304, 5, 1)],
)
def test_kernels_lower_for_gpus(size, channels, k, stride):
    padding = PADDINGS["same"]((size, size), k, stride)

    def run(x, kernel):
        y, vjp = jax.vjp(lambda x, w: depthwise(x, w, stride, padding), x, kernel)
        return y, vjp(y)

    x = jax.ShapeDtypeStruct((128, size, size, channels), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((k, k, 1, channels), jnp.bfloat16)
    lowered = jax.jit(run).trace(x, kernel).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert text.count("xla.gpu.triton") + text.count("triton_kernel_call") == 3


def test_divisor_and_layout_by_hand():
    assert [divisor(128, n) for n in (1, 3, 200)] == [1, 2, 128]
    assert divisor(6, 4) == 3
    # 4 groups of 5 columns cover 19 with one to spare, as 5 groups of 4 do, but load
    # less.
    assert choose_layout(19, 1056, 5, (4, 5), 4) == LaneLayout(5, 1056, 4)
    # Lanes of 5 columns fit a width of 10; lanes of 4 columns would waste two.
    assert choose_layout(10, 1824, 5, (4, 5), 4).columns == 5


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("factors", [1, 2, 5])
def test_assembly_sums_the_products(factors, continued):
    values = [0.0, *np.random.default_rng(factors).normal(size=continued + 2 * factors)]
    pairs = np.reshape(values[1 + continued :], (-1, 2))
    expected = pairs.prod(1).sum() + continued * values[1]
    for line in assembly(factors, continued).removesuffix(";").split("; "):
        operation, places = line.split(" ", 1)
        target, a, b, *c = (int(place.strip(" $")) for place in places.split(","))
        assert operation == ("fma.rn.f32" if c else "mul.rn.f32")
        values[target] = values[a] * values[b] + sum(values[n] for n in c)
    assert values[0] == pytest.approx(expected)
