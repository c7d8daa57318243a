"""Depthwise convolution as Pallas kernels for NVIDIA GPUs, through Triton.

XLA's grouped convolution reads and writes a multiple of its arguments. Here each
program walks down the rows of one image, reads a row once and holds in registers what
its outputs have gathered so far.

A program's lanes, see `depthwise_lanes`, use each column that they load for all taps.
Row and column sums are in float32. Both kernel sides equal k; in the comments
n = ceil(k / stride) is the number of output rows that one input row feeds.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from align_jax.kernels.convolution import Padding, differentiable, output_size
from align_jax.kernels.depthwise_lanes import (
    OUTSIDE,
    Tile,
    choose_tile,
    image_of,
    in_float32,
    lanes_of,
    load_weights,
)

# Columns that a lane may have in each kernel, and warps of a program.
CONVOLVE_COLUMNS = 4, 5
SPREAD_COLUMNS = 2, 3
PRODUCTS_COLUMNS = 4, 5
WARPS = 4

# Programs of the kernel's gradient, at least: more than an H100 holds at a time (396).
PROGRAMS = 512


def _correlate_kernel(
    x_ref, w_ref, y_ref, *, k, stride, low, sizes, channels, tile, interpret
):
    """Rows of x go once through the accumulators of the n rows of y that see them."""
    (height, _), (height_out, width_out) = sizes
    top, left = low
    n = pl.cdiv(k, stride)
    lanes = lanes_of(tile, width_out, channels)
    x = image_of(x_ref, sizes[0], lanes, -left, stride * tile.columns, channels)
    y = image_of(y_ref, sizes[1], lanes, 0, tile.columns, channels)
    weights = load_weights(w_ref, k, lanes)
    seen = (tile.columns - 1) * stride + k

    # Row `stride * m + t` of the padded image is tap `stride * a + t` of output m - a.
    first = min(max(top // stride, 0), n - 1)
    last = max((top + height - 1) // stride, height_out - 1)

    def load(m):
        rows = [stride * m + t - top for t in range(stride)]
        return [x.load(row, seen) for row in rows]

    def add_rows(m, carry):
        sums, coming = carry  # sums of outputs m - n + 1, ..., m - 1
        rows = [in_float32(row) for row in coming]
        coming = load(m + 1)  # asked for before it is needed
        begun = []
        for a in reversed(range(n)):  # in this order no sum moves to another register
            totals = [
                _add_products(
                    sums[n - 1 - a][q] if a else None,
                    [
                        (rows[t][q * stride + j], weights[stride * a + t][j])
                        for t in range(min(stride, k - stride * a))
                        for j in range(k)
                    ],
                    interpret,
                )
                for q in range(tile.columns)
            ]
            begun.append(totals)
        y_row, *sums = begun
        for q, total in enumerate(y_row):
            y.store(m - n + 1, q, total)
        return sums, coming

    zeros = jnp.zeros(tile.block, jnp.float32)
    sums = [[zeros] * tile.columns] * (n - 1)
    sums, _ = lax.fori_loop(first, last + 1, add_rows, (sums, load(jnp.int32(first))))
    for place, row in enumerate(sums):
        if 0 <= (m := last - n + 2 + place) < height_out:
            for q in range(tile.columns):
                y.store(jnp.int32(m), q, row[q])


def _add_products(total, factors: list[tuple], interpret: bool) -> jax.Array:
    """Adds products a * b in order, to nothing if `total` is None.

    They are one assembly operation to Triton: its passes take a time that grows with
    more than the square of the number of operations, half a minute for these kernels.

    Args:
      total: (block,) float32 or None.
      factors: pairs (a, b) of (block,) float32.
      interpret: as plain JAX.
    """
    if interpret:
        products = [a * b for a, b in factors]
        return sum(products[1:], products[0] if total is None else total + products[0])
    arguments = [] if total is None else [total]
    arguments += [array for pair in factors for array in pair]
    shape = jax.ShapeDtypeStruct(arguments[0].shape, jnp.float32)
    (result,) = triton.elementwise_inline_asm(
        assembly(len(factors), total is not None),
        args=arguments,
        # Written before the last argument is read: "&".
        constraints=",".join(["=&f", *"f" * len(arguments)]),
        pack=1,
        result_shape_dtypes=[shape],
    )
    return result


def assembly(factors: int, continued: bool) -> str:
    """PTX for $0 = $1 * $2 + $3 * $4 + ..., or $1 + $2 * $3 + ... if continued."""
    first = 1 + continued
    lines = ["fma.rn.f32 $0, $2, $3, $1;" if continued else "mul.rn.f32 $0, $1, $2;"]
    for place in range(first + 2, first + 2 * factors, 2):
        lines.append(f"fma.rn.f32 $0, ${place}, ${place + 1}, $0;")
    return " ".join(lines)


def _spread_kernel(
    g_ref, w_ref, x_ref, *, k, stride, low, sizes, channels, tile, interpret
):
    """Transposed convolution: n rows of g are held, each output is one sum of them.

    Of k * k taps, an output sees those of its row's and column's parity.
    """
    (height, width), _ = sizes
    top, left = low
    n = pl.cdiv(k, stride)
    begin = left // stride  # the first group of `stride` padded columns
    lanes = lanes_of(tile, column_groups(width, left, stride), channels)
    g = image_of(g_ref, sizes[1], lanes, begin - n + 1, tile.columns, channels)
    x = image_of(
        x_ref, sizes[0], lanes, stride * begin - left, stride * tile.columns, channels
    )
    weights = load_weights(w_ref, k, lanes)
    seen = tile.columns + n - 1
    first = top // stride
    last = (top + height - 1) // stride

    def write_rows(m, carry):
        held, coming = carry
        rows = [in_float32(coming), *held]  # m, m - 1, ..., m - n + 1
        coming = g.load(m + 1, seen)
        for t in range(stride):
            for step in range(stride * tile.columns):
                factors = _parity(rows, weights, stride, t, step)
                total = _add_products(None, factors, interpret)
                x.store(stride * m + t - top, step, total)
        return rows[:-1], coming

    held = [in_float32(g.load(jnp.int32(first - a), seen)) for a in range(1, n)]
    coming = g.load(jnp.int32(first), seen)
    lax.fori_loop(first, last + 1, write_rows, (held, coming))


def _parity(rows, weights, stride, t, step) -> list[tuple]:
    """Factors of the output in row t and column `step` of a lane's group."""
    k, n = len(weights), len(rows)
    q, u = divmod(step, stride)
    return [
        (rows[a][q - b + n - 1], weights[stride * a + t][stride * b + u])
        for a in range(pl.cdiv(k - t, stride))
        for b in range(pl.cdiv(k - u, stride))
    ]


def _products_kernel(
    x_ref, g_ref, sum_ref, *, k, stride, low, sizes, channels, tile, interpret
):
    """Sums of products for the kernel's gradient, of each lane over its images.

    n rows of g are held while the rows of x that they see go by.
    """
    (height, _), (height_out, width_out) = sizes
    top, left = low
    n = pl.cdiv(k, stride)
    lanes = lanes_of(tile, width_out, channels)
    x = image_of(x_ref, sizes[0], lanes, -left, stride * tile.columns, channels)
    g = image_of(g_ref, sizes[1], lanes, 0, tile.columns, channels)
    seen = (tile.columns - 1) * stride + k
    first = min(max(top // stride, 0), n - 1)
    last = min((top + height - 1) // stride, height_out + n - 2)

    def add_image(image, sums):
        def load(m):
            rows = [stride * m + t - top for t in range(stride)]
            return (
                g.load(m, tile.columns, (image,)),
                [x.load(row, seen, (image,)) for row in rows],
            )

        def add_rows(m, carry):
            sums, held, (g_row, x_rows) = carry
            held = [in_float32(g_row), *held]  # m, m - 1, ..., m - n + 1
            rows = [in_float32(row) for row in x_rows]
            coming = load(m + 1)
            sums = [
                _add_products(
                    sums[tap],
                    [
                        (rows[i % stride][q * stride + j], held[i // stride][q])
                        for q in range(tile.columns)
                    ],
                    interpret,
                )
                for tap, (i, j) in enumerate(itertools.product(range(k), repeat=2))
            ]
            return sums, held[:-1], coming

        held = [
            in_float32(g.load(jnp.int32(first - a), tile.columns, (image,)))
            for a in range(1, n)
        ]
        carry = sums, held, load(jnp.int32(first))
        return lax.fori_loop(first, max(last + 1, first), add_rows, carry)[0]

    sums = [jnp.zeros(tile.block, jnp.float32)] * (k * k)
    sums = lax.fori_loop(0, x_ref.shape[0], add_image, sums)
    place = lanes.group * channels + lanes.channel
    for tap, total in enumerate(sums):
        triton.store(sum_ref.at[tap, place], total, mask=lanes.column < OUTSIDE)


def _slide(body, x, kernel, static, tile, covered, rows, interpret):
    """Runs a kernel from x (B, h, w, C) to (B, *rows, C); tiles cover `covered`."""
    batch, height, width, channels = x.shape
    flat = (None, height, width * channels), (None, rows[0], rows[1] * channels)
    each, out_each = (pl.BlockSpec(block, lambda _, b: (b, 0, 0)) for block in flat)
    weights = kernel.reshape(-1, channels)  # (k * k, C)
    out = pl.pallas_call(
        partial(body, **static, tile=tile, interpret=interpret),
        grid=(tile.programs(covered, channels), batch),
        in_specs=[each, pl.BlockSpec(weights.shape, lambda _, b: (0, 0))],
        out_specs=out_each,
        out_shape=jax.ShapeDtypeStruct((batch, *flat[1][1:]), x.dtype),
        compiler_params=_compiler_params(tile),
        interpret=interpret,
    )(x.reshape(batch, height, width * channels), weights)
    return out.reshape(batch, *rows, channels)


def _compiler_params(tile: Tile) -> triton.CompilerParams:
    return triton.CompilerParams(num_warps=tile.warps, num_stages=1)


@partial(jax.jit, static_argnames=("stride", "padding", "tile", "interpret"))
def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    tile: Tile | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`depthwise` without a gradient, for a given `tile`."""
    k, _, _, channels = kernel.shape
    top, left = padding[0][0], padding[1][0]
    _, height, width, _ = x.shape
    rows = (
        output_size(height, k, stride, padding[0]),
        output_size(width, k, stride, padding[1]),
    )
    sizes = (height, width), rows
    static = dict(k=k, stride=stride, low=(top, left), sizes=sizes, channels=channels)
    tile = tile or choose_tile(rows[1], channels, k, CONVOLVE_COLUMNS, WARPS)
    return _slide(_correlate_kernel, x, kernel, static, tile, rows[1], rows, interpret)


@partial(jax.jit, static_argnames=("size", "stride", "padding", "tile", "interpret"))
def input_gradient(
    cotangent: jax.Array,
    kernel: jax.Array,
    size: tuple[int, int],
    stride: int,
    padding: Padding,
    tile: Tile | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Gradient (B, *size, C) to the input from a cotangent (B, H', W', C)."""
    k, _, _, channels = kernel.shape
    low = padding[0][0], padding[1][0]
    if stride == 1:
        padding = tuple(
            (k - 1 - before, n + before - n_out)
            for n, n_out, before in zip(size, cotangent.shape[1:3], low, strict=True)
        )
        mirrored = kernel[::-1, ::-1]
        return convolve(cotangent, mirrored, 1, padding, tile, interpret)
    sizes = size, cotangent.shape[1:3]
    static = dict(k=k, stride=stride, low=low, sizes=sizes, channels=channels)
    groups = column_groups(size[1], low[1], stride)
    tile = tile or choose_tile(groups, channels, k, SPREAD_COLUMNS, WARPS)
    return _slide(
        _spread_kernel, cotangent, kernel, static, tile, groups, size, interpret
    )


@partial(
    jax.jit,
    static_argnames=("k", "stride", "padding", "tile", "programs", "interpret"),
)
def kernel_gradient(
    x: jax.Array,
    cotangent: jax.Array,
    k: int,
    stride: int,
    padding: Padding,
    tile: Tile | None = None,
    programs: int = PROGRAMS,
    interpret: bool = False,
) -> jax.Array:
    """Gradient (k, k, 1, C) to the kernel in float32, the same in every run.

    A program goes through several images, as many as leave about `programs` of them.
    """
    batch, *size, channels = x.shape
    size_out = cotangent.shape[1:3]
    low = padding[0][0], padding[1][0]
    tile = tile or choose_tile(size_out[1], channels, k, PRODUCTS_COLUMNS, WARPS)
    each = tile.programs(size_out[1], channels)
    images = divisor(batch, max(each * batch // programs, 1))
    groups = pl.cdiv(size_out[1], tile.columns)
    flat = [(n[0], n[1] * channels) for n in (size, size_out)]
    sums = pl.pallas_call(
        partial(
            _products_kernel,
            k=k,
            stride=stride,
            low=low,
            sizes=(tuple(size), size_out),
            channels=channels,
            tile=tile,
            interpret=interpret,
        ),
        grid=(each, batch // images),
        in_specs=[pl.BlockSpec((images, *n), lambda _, b: (b, 0, 0)) for n in flat],
        out_specs=pl.BlockSpec(
            (None, k * k, groups * channels), lambda _, b: (b, 0, 0)
        ),
        out_shape=jax.ShapeDtypeStruct(
            (batch // images, k * k, groups * channels), jnp.float32
        ),
        compiler_params=_compiler_params(tile),
        interpret=interpret,
    )(x.reshape(batch, *flat[0]), cotangent.reshape(batch, *flat[1]))
    sums = sums.reshape(-1, k * k, groups, channels).sum((0, 2))  # (k * k, C)
    return sums.reshape(k, k, 1, channels)


def column_groups(width: int, left: int, stride: int) -> int:
    """Groups of `stride` padded columns that `width` columns after `left` touch."""
    return (left + width - 1) // stride + 1 - left // stride


def divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is no larger than `limit`."""
    return next(n for n in range(min(limit, number), 0, -1) if number % n == 0)


depthwise = differentiable(convolve, input_gradient, kernel_gradient)
