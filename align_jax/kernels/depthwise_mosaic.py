"""Depthwise convolution as Pallas kernels for TPUs, through Mosaic.

By the TPU compiler's own estimate XLA's grouped convolutions take most of a block's
time. Here images lie as that compiler lays them out, (H, W, B, C): its tiles are of
images by channels, so that a tap is another tile and nothing is shifted within one.

A program has a strip of rows of some images and channels. It copies them to float32
with zeros around them, and every output place is a sum over its taps.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from align_jax.kernels.convolution import (
    Padding,
    differentiable,
    grouped_conv,
    output_size,
)

LANES, SUBLANES = 128, 8
# What a program's arrays may take of a core's vector memory: 16 MiB on TPU v2 and v3,
# 128 on v5e and v6e.
STRIP_BYTES = 12 * 2**20
# Places of a row that a program sums at a time, and that it copies.
PLACES, COPIES = 4, 8


class Axis(NamedTuple):
    """How places of an output see an input along an axis.

    Places come in units of `factor`. Place `factor * u + phase` sees input
    `stride * u + offset - low` for each (offset, tap) of the phase.

    Attributes:
      units: of the output.
      factor: places of a unit.
      stride: inputs from a unit to the next.
      low: zeros before the first input.
      taps: for each phase the pairs (offset, tap).
      places: of the output; the last unit may have fewer.
    """

    units: int
    factor: int
    stride: int
    low: int
    taps: tuple[tuple[tuple[int, int], ...], ...]
    places: int

    def seen(self, units: int) -> int:
        """Inputs, zeros among them, that so many units see."""
        offsets = [offset for phase in self.taps for offset, _ in phase]
        return self.stride * (units - 1) + max(offsets) + 1


def forward_axis(k: int, stride: int, size: int, padding: tuple[int, int]) -> Axis:
    """Of a convolution of `size` inputs."""
    places = output_size(size, k, stride, padding)
    taps = tuple((tap, tap) for tap in range(k))
    return Axis(places, 1, stride, padding[0], (taps,), places)


def gradient_axis(k: int, stride: int, size: int, padding: tuple[int, int]) -> Axis:
    """Of the gradient to `size` inputs from a convolution's output."""
    seen = [
        [
            ((phase + padding[0] - tap) // stride, tap)
            for tap in range(k)
            if (phase + padding[0] - tap) % stride == 0
        ]
        for phase in range(stride)
    ]
    low = max(0, -min(offset for phase in seen for offset, _ in phase))
    taps = tuple(tuple((offset + low, tap) for offset, tap in phase) for phase in seen)
    return Axis(pl.cdiv(size, stride), stride, 1, low, taps, size)


class Strip(NamedTuple):
    """What a program has: units of rows, images and channels."""

    rows: int
    images: int
    channels: int


def choose_strip(
    rows: Axis, columns: Axis, shape: Sequence[int], bytes_each: int
) -> Strip:
    """The longest strip of an array (B, ., ., C) that fits `STRIP_BYTES`."""
    batch, *_, channels = shape
    images = next((n for n in (16, 8) if batch % n == 0), batch)
    channels = min(channels, LANES)
    cell = images * pl.cdiv(channels, LANES) * LANES

    def size(units):
        # Two buffers of what comes and goes, and the float32 copy of what came.
        source = rows.seen(units) * columns.seen(columns.units) * (4 + 2 * bytes_each)
        out = 2 * bytes_each * units * rows.factor * columns.places
        return cell * (source + out)

    units = rows.units
    while units > 1 and size(units) > STRIP_BYTES:
        units -= 1
    strips = pl.cdiv(rows.units, units)
    return Strip(pl.cdiv(rows.units, strips), images, channels)


def _first_row(strip: jax.Array, rows: Axis, units: int, height: int, known: int):
    """The first of `known` of an image's rows that a strip of `units` is given."""
    return jnp.clip(strip * units * rows.stride - rows.low, 0, height - known)


def _copy_padded(x_ref, padded, height, rows, columns, units):
    """Writes what a strip sees to `padded` in float32, zeros around the image.

    Args:
      x_ref: (known, W, images, channels) rows of the image, see `_first_row`.
      padded: (rows, W', images, channels) float32.
      height: of the image.
      rows: how rows are seen.
      columns: how columns are seen.
      units: of the strip.
    """
    strip = pl.program_id(2)
    known, width = x_ref.shape[:2]
    width = min(width, padded.shape[1] - columns.low)
    first = strip * units * rows.stride - rows.low
    given = _first_row(strip, rows, units, height, known)
    zeros = jnp.zeros(padded.shape[2:], jnp.float32)

    @pl.loop(0, padded.shape[0])
    def _(place):
        row = first + place
        inside = (row >= 0) & (row < height)
        beyond = range(columns.low + width, padded.shape[1])
        for column in (*range(columns.low), *beyond):
            padded[place, column] = zeros

        @pl.when(inside)
        def _():
            def copy(first, count):
                for column in range(count):
                    value = x_ref[row - given, first + column].astype(jnp.float32)
                    padded[place, columns.low + first + column] = value

            _for_each(width, COPIES, copy)

        @pl.when(~inside)
        def _():
            @pl.loop(0, width)
            def _(column):
                padded[place, columns.low + column] = zeros


def _for_each(count: int, at_once: int, body: Callable[[jax.Array, int], None]):
    """Calls body(first, n) for parts of n <= `at_once` of `count` indices."""
    whole, rest = divmod(count, at_once)

    @pl.loop(0, whole)
    def _(index):
        body(index * at_once, at_once)

    if rest:
        body(whole * at_once, rest)


def _sum_kernel(x_ref, w_ref, y_ref, padded, *, height, rows, columns):
    """Sums over taps; x is an input or, of the transposed convolution, an output."""
    units = y_ref.shape[0] // rows.factor
    _copy_padded(x_ref, padded, height, rows, columns, units)
    cell = (-1, *w_ref.shape[2:])

    def sum_places(row, p, first, count):
        first_unit = lax.div(first, columns.factor)
        for place in range(count):
            unit, q = divmod(place, columns.factor)
            terms = [
                padded[
                    row * rows.stride + i,
                    (first_unit + unit) * columns.stride + j,
                ].reshape(cell)
                * w_ref[a, b]
                for i, a in rows.taps[p]
                for j, b in columns.taps[q]
            ]
            total = sum(terms[1:], terms[0]).reshape(y_ref.shape[2:])
            y_ref[row * rows.factor + p, first + place] = total.astype(y_ref.dtype)

    @pl.loop(0, units)
    def _(row):
        for p in range(rows.factor):
            _for_each(columns.places, PLACES, partial(sum_places, row, p))


def _source(x: jax.Array, rows: Axis, strip: Strip) -> pl.BlockSpec:
    """The rows of x (H, W, B, C) that a strip sees."""
    height, width, batch, channels = x.shape
    known = min(rows.seen(strip.rows), height)
    block = (
        pl.Element(known),
        pl.Element(width),
        pl.Element(strip.images),
        pl.Element(strip.channels, (0, -channels % strip.channels)),
    )

    def place(c, b, s):
        # Of a single part Mosaic could not see that its start fits the tiles.
        image = b * strip.images if batch > strip.images else 0
        channel = c * strip.channels if channels > strip.channels else 0
        return _first_row(s, rows, strip.rows, height, known), 0, image, channel

    return pl.BlockSpec(block, place)


def _folded(strip: Strip) -> int:
    """Images that a tile of float32 holds, for which weights are repeated."""
    return SUBLANES if strip.images % SUBLANES == 0 else strip.images


def _sum_taps(
    x: jax.Array, kernel: jax.Array, rows: Axis, columns: Axis, interpret: bool
) -> jax.Array:
    """Sums over taps of x (B, h, w, C): (B, rows.places, columns.places, C)."""
    strip = choose_strip(rows, columns, x.shape, x.dtype.itemsize)
    folded = _folded(strip)
    k, _, _, channels = kernel.shape
    # As a program multiplies by them.
    weights = jnp.tile(kernel.astype(jnp.float32), (1, 1, folded, 1))
    turned = x.transpose(1, 2, 0, 3)  # as the TPU's compiler lays it out
    size = rows.places, columns.places
    seen = rows.seen(strip.rows), columns.seen(columns.units)
    taps = sum(map(len, rows.taps)) * sum(map(len, columns.taps))
    out = jax.ShapeDtypeStruct((*size, len(x), channels), x.dtype)
    cost = pl.CostEstimate(
        flops=2 * taps * rows.units * columns.units * len(x) * channels,
        transcendentals=0,
        bytes_accessed=sum(a.size * a.dtype.itemsize for a in (x, weights, out)),
    )
    out = pl.pallas_call(
        partial(_sum_kernel, height=x.shape[1], rows=rows, columns=columns),
        grid=(
            pl.cdiv(channels, strip.channels),
            len(x) // strip.images,
            pl.cdiv(rows.units, strip.rows),
        ),
        in_specs=[
            _source(turned, rows, strip),
            pl.BlockSpec((k, k, folded, strip.channels), lambda c, b, s: (0, 0, 0, c)),
        ],
        out_specs=pl.BlockSpec(
            (rows.factor * strip.rows, size[1], strip.images, strip.channels),
            lambda c, b, s: (s, 0, b, c),
        ),
        out_shape=out,
        scratch_shapes=[pltpu.VMEM((*seen, strip.images, strip.channels), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3),
        cost_estimate=cost,
        interpret=interpret,
    )(turned, weights)
    return out.transpose(2, 0, 1, 3)


@partial(jax.jit, static_argnames=("stride", "padding", "interpret"))
def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    interpret: bool = False,
) -> jax.Array:
    """`depthwise` without a gradient."""
    axes = map(partial(forward_axis, len(kernel), stride), x.shape[1:3], padding)
    return _sum_taps(x, kernel, *axes, interpret)


@partial(jax.jit, static_argnames=("size", "stride", "padding", "interpret"))
def input_gradient(
    cotangent: jax.Array,
    kernel: jax.Array,
    size: tuple[int, int],
    stride: int,
    padding: Padding,
    interpret: bool = False,
) -> jax.Array:
    """Gradient (B, *size, C) to the input from a cotangent (B, H', W', C)."""
    axes = map(partial(gradient_axis, len(kernel), stride), size, padding)
    return _sum_taps(cotangent, kernel, *axes, interpret)


def kernel_gradient(
    x: jax.Array,
    cotangent: jax.Array,
    k: int,
    stride: int,
    padding: Padding,
    interpret: bool = False,
) -> jax.Array:
    """Gradient (k, k, 1, C) to the kernel, by XLA: a kernel took as long."""
    del interpret
    kernel = jnp.zeros((k, k, 1, x.shape[-1]), x.dtype)
    _, pull = jax.vjp(lambda kernel: grouped_conv(x, kernel, stride, padding), kernel)
    return pull(cotangent)[0]


depthwise = differentiable(convolve, input_gradient, kernel_gradient)
