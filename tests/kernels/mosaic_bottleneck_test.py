"""The kernels for TPUs, in Pallas' interpreter, beside XLA's operations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from align_jax.devices.kernel_choice import (
    MOSAIC,
    MOSAIC_INTERPRET,
    Kernels,
    choose_kernels,
)
from align_jax.errors import InputError
from align_jax.kernels import mosaic_blocks
from align_jax.kernels.convolution import PADDINGS, dense_conv, grouped_conv
from align_jax.kernels.mosaic_axes import forward_axis, gradient_axis
from align_jax.kernels.mosaic_bottleneck import convolve, fits, gradients, pays
from align_jax.models.batch_norm import BatchNorm, Form, normalise
from align_jax.models.bottleneck import Shape, Weights, bottleneck
from align_jax.models.layers import rematerialised
from align_jax.models.mbconv import Block, MBConv
from align_jax.plan import find_devices

POINT = 1, ((0, 0), (0, 0))  # stride and padding of a pointwise convolution
HIDDEN, OUT = 3, 5  # channels of the gate's hidden layer and of the output


def shapes_of(width, channels, k):
    """Returns the shapes of a bottleneck's weights."""
    excite = {
        "reduce": {"kernel": (channels, HIDDEN), "bias": (HIDDEN,)},
        "expand": {"kernel": (HIDDEN, channels), "bias": (channels,)},
    }
    norm = (channels,), (channels,)
    taps = (k, k, 1, channels)
    return Weights((width, channels), *norm, taps, *norm, excite, (channels, OUT))


def is_shape(tree):
    return type(tree) is tuple


def draw(seed, size, batch, width, channels, k):
    """Returns x with a mean, and weights."""
    rng = np.random.default_rng(seed)

    def leaf(shape):
        scale = shape[0] ** -0.5 if len(shape) == 2 else 0.3
        return jnp.asarray(rng.normal(0.0, scale, shape), jnp.float32)

    shapes = shapes_of(width, channels, k)
    weights = jax.tree.map(leaf, shapes, is_leaf=is_shape)
    ones = weights.scale + 1.0, weights.second_scale + 1.0
    weights = weights._replace(scale=ones[0], second_scale=ones[1])
    return leaf((batch, *size, width)) * 3 + 0.5, weights


def cast(x, weights, dtype):
    """Returns what a block in `dtype` gets."""
    wide = {
        name: getattr(weights, name).astype(dtype)
        for name in ("expand", "depthwise", "project")
    }
    return x.astype(dtype), weights._replace(**wide)


def plain(x, weights, shape):
    """Computes `bottleneck` by XLA's operations."""
    form = Form(shape.group, swish=True, kernels=Kernels())
    x = dense_conv(x, weights.expand[None, None], *POINT)
    x, first = normalise(x, weights.scale, weights.bias, None, form)
    x = grouped_conv(x, weights.depthwise, shape.stride, shape.padding)
    second = weights.second_scale, weights.second_bias, weights.excite
    x, second = normalise(x, *second, form)
    return dense_conv(x, weights.project[None, None], *POINT), first, second


def run(form, shape, x, weights):
    """Returns output, statistics and gradients."""
    (out, *statistics), pull = jax.vjp(partial(form, shape=shape), x, weights)
    score = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    nothing = jax.tree.map(jnp.zeros_like, statistics)
    return out, statistics, pull((score.astype(out.dtype), *nothing))


def distances(found, expected):
    """Returns the norm of the difference over the expected norm, for each array."""

    def distance(a, b):
        assert a.shape == b.shape
        a, b = (np.asarray(n, np.float32) for n in (a, b))
        return np.linalg.norm(a - b) / np.linalg.norm(b)

    return jax.tree.leaves(jax.tree.map(distance, found, expected))


@pytest.mark.parametrize(
    ("size", "batch", "channels", "k", "stride", "rule", "group"),
    [
        ((9, 7), 32, 24, 3, 1, "same", 16),
        ((11, 6), 8, 136, 5, 2, "keras", 4),
    ],
)
def test_result_and_gradients_equal_xlas(
    monkeypatch, size, batch, channels, k, stride, rule, group
):
    monkeypatch.setattr(mosaic_blocks, "MOST_UNITS", 2)
    padding = PADDINGS[rule](size, k, stride)
    shape = Shape(stride, padding, group, Kernels(MOSAIC_INTERPRET))
    x, weights = draw(k, size, batch, 8, channels, k)
    found, expected = (
        jax.jit(partial(run, form, shape))(x, weights) for form in (bottleneck, plain)
    )
    assert max(distances(found, expected)) < 1e-5


def test_bfloat16_is_nearer_to_float32_than_by_xla():
    shape = Shape(1, ((1, 1), (1, 1)), 4, Kernels(MOSAIC_INTERPRET))
    drawn = draw(1, (6, 5), 8, 8, 24, 3)
    x, weights = cast(*drawn, jnp.bfloat16)
    exact = cast(x, weights, jnp.float32)
    expected = jax.jit(partial(run, plain, shape))(*exact)
    by_xla, by_kernels = (
        distances(jax.jit(partial(run, form, shape))(x, weights), expected)
        for form in (plain, bottleneck)
    )
    # Neither is exact: both round y, and XLA rounds wide arrays that we never store.
    assert by_kernels[0] < by_xla[0]
    assert np.mean(by_kernels) < np.mean(by_xla)


@pytest.mark.parametrize("size", [7, 10])
@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rule", PADDINGS)
def test_the_gradient_sees_what_the_convolution_saw(size, k, stride, rule):
    padding = PADDINGS[rule]((size, size), k, stride)[0]

    def seen(axis):
        for pixel in range(axis.pixels):
            unit, phase = divmod(pixel, axis.factor)
            for offset, tap in axis.taps[phase]:
                source = axis.stride * unit + offset - axis.low
                if 0 <= source < axis.source:
                    yield pixel, tap, source

    forward = set(seen(forward_axis(k, stride, size, padding)))
    backward = set(seen(gradient_axis(k, stride, size, padding)))
    assert {(b, tap, a) for a, tap, b in backward} == forward
    assert len(forward) > size


def test_sums_are_not_taken_again_in_the_backward_pass():
    block, x = Block(3, 1, 6, 8, 8, residual=True), jnp.ones((4, 7, 5, 8))
    norm = partial(BatchNorm, group_size=2)
    layer = rematerialised(MBConv, "blocks", 3)(
        block, norm, kernels=Kernels(MOSAIC_INTERPRET)
    )
    variables = jax.eval_shape(lambda: layer.init(jax.random.key(1), x, None, False))

    def score(params):
        changed = {**variables, "params": params}
        return layer.apply(changed, x, None, True, mutable=["batch_stats"])[0].sum()

    def count(params, batch_stats):
        variables["batch_stats"] = batch_stats
        return jax.grad(score)(params)

    program = jax.jit(count).trace(variables["params"], variables["batch_stats"])
    text = program.lower().as_text()
    calls = {
        name: text.count(f"call @{name}")
        for name in ("moments", "convolve", "gradients")
    }
    assert calls == {"moments": 1, "convolve": 2, "gradients": 1}


def test_kernels_for_tpus_are_refused_elsewhere(mesh_of):
    with pytest.raises(InputError, match=r"which is for TPU v5 lite .* 'cpu'"):
        choose_kernels(MOSAIC, mesh_of(1))


def test_small_groups_are_refused():
    norm = partial(BatchNorm, group_size=8)
    layer = MBConv(Block(3, 1, 6, 8, 8, residual=True), norm, kernels=Kernels(MOSAIC))
    x = jnp.ones((8, 10, 5, 8))
    with pytest.raises(InputError, match=r"groups of 16, 32, .* they are of 8, and a"):
        jax.eval_shape(
            lambda: layer.apply(
                layer.init(jax.random.key(0), x, None, False),
                x,
                None,
                True,
                mutable=["batch_stats"],
            )
        )


def test_a_block_too_wide_for_vector_memory_does_not_fit():
    assert fits(2 * 640, 3840, jnp.bfloat16)  # B7's widest
    assert not fits(2 * 1376, 8256, jnp.bfloat16)  # L2's


def test_the_last_stages_of_b7_have_too_few_pixels_to_gain():
    sizes = {(19, 224): True, (10, 384): False, (10, 640): False}
    for (size, channels), gains in sizes.items():
        x = jax.ShapeDtypeStruct((128, size, size, channels), jnp.bfloat16)
        assert pays(x, 2) == gains


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("target", "size", "width", "channels", "k", "stride"),
    [
        ("v5e:2x2", 145, 32, 192, 3, 2),
        ("v5e:2x2", 10, 640, 3840, 3, 1),
        ("v6e:2x2", 37, 80, 480, 5, 1),
    ],
)
def test_kernels_compile_for_tpus(target, size, width, channels, k, stride):
    device = SingleDeviceSharding(find_devices(target)[0])
    padding = PADDINGS["same"]((size, size), k, stride)
    options = {"stride": stride, "padding": padding, "group": 16}

    def first(arithmetic, x, factor):
        return arithmetic.multiply_add(x, factor, factor)

    def second(arithmetic, y, cotangent, factor):
        return y, arithmetic.multiply_add(y, cotangent, factor)

    def revisit(arithmetic, x, mean, factor):
        return x - mean, arithmetic.sigmoid(x), factor

    def both(x, small, kernel, weights, cotangent, back):
        y, sums = convolve(first, x, small[:, :1], kernel, weights, **options)
        return sums, gradients(
            second,
            y,
            small[:, :1],
            cotangent,
            back,
            revisit,
            x,
            small,
            kernel,
            weights,
            **options,
        )

    out = -(-size // stride)
    wide = [(16, size, size, width), (width, channels), (k, k, 1, channels)]
    wide += [(16, out, out, width), (width, channels)]
    x, kernel, weights, cotangent, back = (
        jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=device) for s in wide
    )
    small = jax.ShapeDtypeStruct((16, 2, channels), jnp.float32, sharding=device)
    program = jax.jit(both).lower(x, small, kernel, weights, cotangent, back).compile()
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == 2
