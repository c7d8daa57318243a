"""Programs of a depthwise convolution on NVIDIA GPUs, see `depthwise_kernel`.

A program walks down an image, reads each row once and holds the unfinished sums, or the
rows that they need, in registers. Kernels are square: k is their side. Everywhere here,
n = ceil(k / stride) is the number of output rows that one input row feeds.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from align_jax.kernels.convolution import Padding, output_size
from align_jax.kernels.depthwise_lanes import (
    OUTSIDE,
    ImageColumns,
    LaneLayout,
    Lanes,
    column_groups,
    image_of,
    in_float32,
    lanes_of,
    load_weights,
)

LaneColumns = list[jax.Array]  # columns of a row that each lane sees, (block,) each
LaneRows = list[LaneColumns]
# Sums by tap, the rows of g that are held, and the next row of g and rows of x.
Carry = tuple[list[jax.Array], LaneRows, tuple[LaneColumns, LaneRows]]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of a depthwise convolution.

    Attributes:
      k: side of the kernel.
      stride: input pixels per output pixel, in both directions.
      low: (top, left) numbers of zeros above the first row and before the first column.
      size: rows and columns of the input, (H, W).
      size_out: rows and columns of the output, (H', W').
      channels: number of channels C.
    """

    k: int
    stride: int
    low: tuple[int, int]
    size: tuple[int, int]
    size_out: tuple[int, int]
    channels: int

    @classmethod
    def of(
        cls, size: tuple[int, int], channels: int, k: int, stride: int, padding: Padding
    ) -> "Geometry":
        """Returns the sizes for an input of `size` pixels."""
        rows, columns = (
            output_size(n, k, stride, zeros)
            for n, zeros in zip(size, padding, strict=True)
        )
        return cls(
            k=k,
            stride=stride,
            low=(padding[0][0], padding[1][0]),
            size=size,
            size_out=(rows, columns),
            channels=channels,
        )


def _lanes_and_images(
    x_ref: jax.Ref, y_ref: jax.Ref, geometry: Geometry, layout: LaneLayout
) -> tuple[Lanes, ImageColumns, ImageColumns]:
    """Returns a program's lanes over the columns of y, and their columns of x and y."""
    stride, left = geometry.stride, geometry.low[1]
    lanes = lanes_of(layout, geometry.size_out[1], geometry.channels)
    x = image_of(x_ref, geometry.size, lanes, first=-left, step=stride * layout.columns)
    y = image_of(y_ref, geometry.size_out, lanes, first=0, step=layout.columns)
    return lanes, x, y


def _load_rows(
    x: ImageColumns,
    m: jax.Array,
    geometry: Geometry,
    layout: LaneLayout,
    prefix: tuple = (),
) -> list[list[jax.Array]]:
    """Loads a lane's input columns in `stride` rows from padded row `stride * m` on."""
    stride, top = geometry.stride, geometry.low[0]
    seen = (layout.columns - 1) * stride + geometry.k
    rows = [stride * m + t - top for t in range(stride)]
    return [x.load(row, seen, prefix) for row in rows]


def correlate_kernel(
    x_ref: jax.Ref,
    w_ref: jax.Ref,
    y_ref: jax.Ref,
    *,
    geometry: Geometry,
    layout: LaneLayout,
    interpret: bool,
) -> None:
    """Convolution: adds each row of x to the sums of the n rows of y that see it.

    Args:
      x_ref: (H, W * C) input image.
      w_ref: (k * k, C) weights.
      y_ref: (H', W' * C) output image, written here.
      geometry: sizes of the convolution.
      layout: layout of a program's lanes, over the columns of y.
      interpret: whether to compute as ordinary JAX.
    """
    k, stride, top = geometry.k, geometry.stride, geometry.low[0]
    height, height_out = geometry.size[0], geometry.size_out[0]
    n = pl.cdiv(k, stride)
    lanes, x, y = _lanes_and_images(x_ref, y_ref, geometry, layout)
    weights = load_weights(w_ref, k, lanes)

    # Output row m - a sees row `stride * m + t` of the padded image under tap row
    # `stride * a + t`.
    first = min(max(top // stride, 0), n - 1)
    last = max((top + height - 1) // stride, height_out - 1)

    def add_rows(
        m: jax.Array, carry: tuple[LaneRows, LaneRows]
    ) -> tuple[LaneRows, LaneRows]:
        sums, coming = carry  # sums of output rows m - n + 1, ..., m - 1
        rows = [in_float32(row) for row in coming]
        coming = _load_rows(x, m + 1, geometry, layout)  # starts before its use
        begun = []
        # In this order no sum moves to another register.
        for a in reversed(range(n)):
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
                for q in range(layout.columns)
            ]
            begun.append(totals)
        y_row, *sums = begun
        for q, total in enumerate(y_row):
            y.store(m - n + 1, q, total)
        return sums, coming

    zeros = jnp.zeros(layout.block, jnp.float32)
    sums = [[zeros] * layout.columns] * (n - 1)
    rows = _load_rows(x, jnp.int32(first), geometry, layout)
    sums, _ = lax.fori_loop(first, last + 1, add_rows, (sums, rows))
    for m, row in enumerate(sums, last - n + 2):
        if 0 <= m < height_out:
            for q in range(layout.columns):
                y.store(jnp.int32(m), q, row[q])


def spread_kernel(
    g_ref: jax.Ref,
    w_ref: jax.Ref,
    x_ref: jax.Ref,
    *,
    geometry: Geometry,
    layout: LaneLayout,
    interpret: bool,
) -> None:
    """Transposed convolution: holds n rows of g and sums over them for each output row.

    An output sees only the taps that match its row and column modulo `stride`.

    Args:
      g_ref: (H', W' * C) cotangent of one image.
      w_ref: (k * k, C) weights.
      x_ref: (H, W * C) gradient of the input, written here.
      geometry: sizes of the convolution.
      layout: layout of a program's lanes, over groups of `stride` columns of x.
      interpret: whether to compute as ordinary JAX.
    """
    k, stride, (top, left) = geometry.k, geometry.stride, geometry.low
    height, width = geometry.size
    n = pl.cdiv(k, stride)
    begin = left // stride  # index of the first group of `stride` padded columns
    groups = column_groups(width, left, stride)
    lanes = lanes_of(layout, groups, geometry.channels)
    g = image_of(
        g_ref, geometry.size_out, lanes, first=begin - n + 1, step=layout.columns
    )
    x = image_of(
        x_ref,
        geometry.size,
        lanes,
        first=stride * begin - left,
        step=stride * layout.columns,
    )
    weights = load_weights(w_ref, k, lanes)
    seen = layout.columns + n - 1
    first = top // stride
    last = (top + height - 1) // stride

    def write_rows(
        m: jax.Array, carry: tuple[LaneRows, LaneColumns]
    ) -> tuple[LaneRows, LaneColumns]:
        held, coming = carry
        rows = [in_float32(coming), *held]  # m, m - 1, ..., m - n + 1
        coming = g.load(m + 1, seen)
        for t in range(stride):
            for step in range(stride * layout.columns):
                factors = _parity(rows, weights, stride, t, step)
                total = _add_products(None, factors, interpret)
                x.store(stride * m + t - top, step, total)
        return rows[:-1], coming

    held = [in_float32(g.load(jnp.int32(first - a), seen)) for a in range(1, n)]
    coming = g.load(jnp.int32(first), seen)
    lax.fori_loop(first, last + 1, write_rows, (held, coming))


def _parity(
    rows: list[list[jax.Array]],
    weights: list[list[jax.Array]],
    stride: int,
    t: int,
    step: int,
) -> list[tuple[jax.Array, jax.Array]]:
    """Returns the (g, weight) factors of a lane's output in row t, column `step`."""
    k, n = len(weights), len(rows)
    q, u = divmod(step, stride)
    return [
        (rows[a][q - b + n - 1], weights[stride * a + t][stride * b + u])
        for a in range(pl.cdiv(k - t, stride))
        for b in range(pl.cdiv(k - u, stride))
    ]


def products_kernel(
    x_ref: jax.Ref,
    g_ref: jax.Ref,
    sum_ref: jax.Ref,
    *,
    geometry: Geometry,
    layout: LaneLayout,
    interpret: bool,
) -> None:
    """Sums the products of the kernel's gradient over the images of a program.

    The program holds n rows of g while the rows of x that they see pass by.

    Args:
      x_ref: (images, H, W * C) input.
      g_ref: (images, H', W' * C) cotangent.
      sum_ref: (k * k, groups * C) output: sums by tap, group of columns, and channel.
      geometry: sizes of the convolution.
      layout: layout of a program's lanes, over the columns of g.
      interpret: whether to compute as ordinary JAX.
    """
    k, stride, top = geometry.k, geometry.stride, geometry.low[0]
    height, height_out = geometry.size[0], geometry.size_out[0]
    n = pl.cdiv(k, stride)
    lanes, x, g = _lanes_and_images(x_ref, g_ref, geometry, layout)
    first = min(max(top // stride, 0), n - 1)
    last = min((top + height - 1) // stride, height_out + n - 2)

    def add_image(image: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        def load(m: jax.Array) -> tuple[LaneColumns, LaneRows]:
            g_row = g.load(m, layout.columns, (image,))
            return g_row, _load_rows(x, m, geometry, layout, (image,))

        def add_rows(m: jax.Array, carry: Carry) -> Carry:
            sums, held, (g_row, x_rows) = carry
            held = [in_float32(g_row), *held]  # m, m - 1, ..., m - n + 1
            rows = [in_float32(row) for row in x_rows]
            coming = load(m + 1)
            sums = [
                _add_products(
                    sums[tap],
                    [
                        (rows[i % stride][q * stride + j], held[i // stride][q])
                        for q in range(layout.columns)
                    ],
                    interpret,
                )
                for tap, (i, j) in enumerate(itertools.product(range(k), repeat=2))
            ]
            return sums, held[:-1], coming

        held = [
            in_float32(g.load(jnp.int32(first - a), layout.columns, (image,)))
            for a in range(1, n)
        ]
        carry = sums, held, load(jnp.int32(first))
        return lax.fori_loop(first, max(last + 1, first), add_rows, carry)[0]

    sums = [jnp.zeros(layout.block, jnp.float32)] * (k * k)
    sums = lax.fori_loop(0, x_ref.shape[0], add_image, sums)
    column = lanes.group * geometry.channels + lanes.channel
    for tap, total in enumerate(sums):
        triton.store(sum_ref.at[tap, column], total, mask=lanes.column < OUTSIDE)


def _add_products(
    total: jax.Array | None,
    factors: list[tuple[jax.Array, jax.Array]],
    interpret: bool,
) -> jax.Array:
    """Adds products a * b to `total` in order; None counts as zero.

    Triton sees all products as one operation, because its compile time grows faster
    than the square of the number of operations: to half a minute for these kernels.

    Args:
      total: (block,) float32 or None.
      factors: pairs (a, b) of (block,) float32.
      interpret: whether to compute as ordinary JAX.
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
        # "&": the result is written before the last argument is read.
        constraints=",".join(["=&f", *"f" * len(arguments)]),
        pack=1,
        result_shape_dtypes=[shape],
    )
    return result


def assembly(factors: int, continued: bool) -> str:
    """Returns PTX that sums `factors` products, and a first $1 if continued, in $0."""
    first = 1 + continued
    lines = ["fma.rn.f32 $0, $2, $3, $1;" if continued else "mul.rn.f32 $0, $1, $2;"]
    for argument in range(first + 2, first + 2 * factors, 2):
        lines.append(f"fma.rn.f32 $0, ${argument}, ${argument + 1}, $0;")
    return " ".join(lines)
