"""Programs of the kernels for TPUs in `mosaic_expand`.

A program has some images and walks down their rows, see `mosaic_axes`, with 128
channels at a time. It transforms each source pixel once, in float32, when it copies the
pixel to a ring of rows. Each pixel of a result is a sum over taps of the ring's pixels.
The grid is (images, steps of the walk, channels).
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from align_jax.kernels.mosaic_axes import Axis, Strips
from align_jax.kernels.walk_programs import Arithmetic

SUBLANES = 8
# Pixels of a row that a program computes at a time, and that it copies at a time.
PIXELS, COPIES = 4, 8

Index = jax.Array | int
Visit = Callable[..., jax.Array]
Cell = jax.Array  # a pixel of some images and channels, (images, channels)


def tanh_sigmoid(x: jax.Array) -> jax.Array:
    """Returns 1 / (1 + exp(-x)) by the hyperbolic tangent, which TPUs compute."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


ARITHMETIC = Arithmetic(tanh_sigmoid, lambda a, b, c: a * b + c)


class Ring(NamedTuple):
    """Rows of transformed pixels in vector memory.

    Attributes:
      strips: the walk down the rows.
      columns: axis of the columns.
      rows: (strips.ring, columns.seen, images, channels) float32.
    """

    strips: Strips
    columns: Axis
    rows: jax.Ref

    @property
    def width(self) -> int:
        """Number of the source's columns that are seen."""
        return min(self.columns.source, self.columns.seen - self.columns.low)

    def fill(self, step: jax.Array, read: Callable[..., jax.Array]) -> None:
        """Copies a strip of the source to the ring, with zeros around the image.

        Args:
          step: number of the strip.
          read: function of a row of the strip, a first column and a number n of
            columns; it returns transformed pixels (n, images, channels) in float32.
        """
        strips, columns = self.strips, self.columns
        low, width = columns.low, self.width
        cell = self.rows.shape[2:]

        @pl.when(step == 0)
        def _() -> None:
            @pl.loop(0, strips.ring)
            def _(row: jax.Array) -> None:
                for first, last in ((0, low), (low + width, columns.seen)):
                    if last > first:
                        zeros = jnp.zeros((last - first, *cell), jnp.float32)
                        self.rows[row, first:last] = zeros

            for row in range(strips.ring - strips.rows.low, strips.ring):
                self.clear(row)

        @pl.loop(0, strips.read)
        def _(row: jax.Array) -> None:
            source = step * strips.read + row
            index = lax.rem(source, strips.ring)

            def copy(first: Index, count: int) -> None:
                target = pl.ds(low + first, count)
                self.rows[index, target] = read(row, first, count)

            @pl.when(source < strips.rows.source)
            def _() -> None:
                for_each(width, COPIES, copy)

            @pl.when(source >= strips.rows.source)
            def _() -> None:
                self.clear(index)

    def clear(self, row: Index) -> None:
        """Writes zeros to a row of the ring."""
        zeros = jnp.zeros(self.rows.shape[2:], jnp.float32)

        @pl.loop(0, self.columns.seen)
        def _(column: jax.Array) -> None:
            self.rows[row, column] = zeros

    def for_rows(self, step: jax.Array, body: Callable[[jax.Array, int], None]) -> None:
        """Calls body(unit, phase) for each row of the strip before that of `step`."""
        strips, rows = self.strips, self.strips.rows

        @pl.when(step > 0)
        def _() -> None:
            @pl.loop(0, strips.units)
            def _(unit: jax.Array) -> None:
                for phase in range(rows.factor):
                    row = ((step - 1) * strips.units + unit) * rows.factor + phase
                    pl.when(row < rows.pixels)(partial(body, unit, phase))

    def row_taps(
        self, step: jax.Array, unit: jax.Array, phase: int
    ) -> list[tuple[jax.Array, int]]:
        """Returns the ring's row and the tap for each row that a result's row sees."""
        strips, rows = self.strips, self.strips.rows
        seen = rows.stride * ((step - 1) * strips.units + unit) - rows.low
        return [
            (lax.rem(seen + strips.ring + offset, strips.ring), tap)
            for offset, tap in rows.taps[phase]
        ]

    def sums(
        self,
        taps: list[tuple[jax.Array, int]],
        weights: jax.Ref,
        first: Index,
        count: int,
        each: Callable[[dict[int, Cell], tuple[int, int]], None] | None = None,
    ) -> list[Cell]:
        """Sums over taps for `count` pixels of a row.

        Args:
          taps: of `row_taps`.
          weights: (k, k, SUBLANES, channels) float32.
          first: first column, a multiple of the columns' factor.
          count: number of columns.
          each: function of the source's pixels under a tap, by number of the result's
            pixel, and of the tap.
        """
        columns = self.columns
        units = lax.div(jnp.int32(first), jnp.int32(columns.factor))
        totals: list = [None] * count
        for row, i in taps:
            for j in range(weights.shape[1]):
                cells = {}
                for pixel in range(count):
                    ahead, phase = divmod(pixel, columns.factor)
                    for offset, tap in columns.taps[phase]:
                        if tap == j:
                            column = (units + ahead) * columns.stride + offset
                            cells[pixel] = self.rows[row, column]
                weight = weights[i, j]
                for pixel, cell in cells.items():
                    term = scaled(cell, weight)
                    before = totals[pixel]
                    totals[pixel] = term if before is None else before + term
                if each is not None and cells:
                    each(cells, (i, j))
        return totals


def scaled(cell: Cell, weight: jax.Array) -> Cell:
    """Multiplies (images, channels) by (SUBLANES, channels), repeated over images."""
    folded = cell.reshape(-1, *weight.shape)
    return (folded * weight[None]).reshape(cell.shape)


def total(cells: Sequence[Cell]) -> Cell:
    """Sums pixels."""
    return sum(cells[1:], cells[0])


def for_each(count: int, at_once: int, body: Callable[[Index, int], None]) -> None:
    """Calls body(first, n) for parts of n <= `at_once` of `count` indices."""
    whole, rest = divmod(count, at_once)

    if whole:

        @pl.loop(0, whole)
        def _(index: jax.Array) -> None:
            body(index * at_once, at_once)

    if rest:
        body(whole * at_once, rest)


def multiply(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Multiplies two matrices in float32, summing over an axis of each."""
    exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a,
        b,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=exact,
        preferred_element_type=jnp.float32,
    )


@dataclasses.dataclass(frozen=True)
class Program:
    """The parameters that a program is compiled for.

    Attributes:
      strips: the walk down the rows.
      columns: axis of the columns.
      visit: elementwise function of an `Arithmetic`, source pixels and the small
        numbers of their images and channels; it returns the pixel that is convolved.
      revisit: the same, of an expanded pixel; it returns the pixel minus its mean, its
        transformed value and the slope there. For gradients only.
    """

    strips: Strips
    columns: Axis
    visit: Visit
    revisit: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] | None = None


def _spread(small: jax.Ref, block: jax.Array) -> list[jax.Array]:
    """Returns the small numbers of a block of channels, (1, images, channels) each."""
    return [small[block, n][None] for n in range(small.shape[1])]


def _expand(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies pixels (n, images, Cin) by a kernel (Cin, channels), in float32."""
    out = multiply(x.reshape(-1, x.shape[-1]), kernel, (1, 0))
    return out.reshape(*x.shape[:2], -1)


def convolve_program(
    x: jax.Ref,
    small: jax.Ref,
    kernel: jax.Ref,
    weights: jax.Ref,
    out: jax.Ref,
    sums: jax.Ref,
    ring: jax.Ref,
    *,
    program: Program,
) -> None:
    """Expands images, transforms and convolves them, and sums the result's pixels.

    Args:
      x: a strip (rows, W, images, Cin).
      small: (blocks, n, images, channels) float32.
      kernel: (blocks, Cin, channels) weights that expand.
      weights: (blocks, k, k, SUBLANES, channels) float32, of the convolution.
      out: result, a strip (rows, W', images, channels).
      sums: result, (blocks, 2, images, channels) float32.
      ring: (blocks, rows, columns, images, channels) float32.
      program: parameters of the program.
    """
    step, block = pl.program_id(1), pl.program_id(2)
    held = Ring(program.strips, program.columns, ring.at[block])

    @pl.when(step == 0)
    def _() -> None:
        sums[block] = jnp.zeros(sums.shape[1:], sums.dtype)

    def read(row: jax.Array, first: Index, count: int) -> jax.Array:
        pixels = _expand(x[row, pl.ds(first, count)], kernel[block])
        return program.visit(ARITHMETIC, pixels, *_spread(small, block))

    def convolve(unit: jax.Array, phase: int) -> None:
        taps = held.row_taps(step, unit, phase)

        def pixels(first: Index, count: int) -> None:
            cells = held.sums(taps, weights.at[block], first, count)
            for pixel, cell in enumerate(cells):
                out[unit, first + pixel] = cell.astype(out.dtype)
            sums[block, 0] += total(cells)
            sums[block, 1] += total([cell * cell for cell in cells])

        for_each(program.columns.pixels, PIXELS, pixels)

    held.fill(step, read)
    held.for_rows(step, convolve)


def gradient_program(
    x: jax.Ref,
    x_small: jax.Ref,
    kernel: jax.Ref,
    weights: jax.Ref,
    y: jax.Ref,
    cotangent: jax.Ref,
    small: jax.Ref,
    to_x: jax.Ref,
    sums: jax.Ref,
    to_kernel: jax.Ref,
    to_weights: jax.Ref,
    ring: jax.Ref,
    expanded: jax.Ref,
    inner: jax.Ref,
    total_x: jax.Ref,
    *,
    program: Program,
    channels: int,
) -> None:
    """Computes gradients of `convolve_program`'s result.

    The gradient of the normalisation's sums is not in them.

    Args:
      x: a strip (rows, W, images, Cin) of the forward pass's source.
      x_small: (blocks, m, images, channels) float32: mean, factor, ...
      kernel: as in `convolve_program`.
      weights: as in `convolve_program`.
      y: a strip (rows, W', images, channels) of the forward pass's result.
      cotangent: like y.
      small: (blocks, n, images, channels) float32 for y and the cotangent.
      to_x: result, like x.
      sums: result, (blocks, 2, images, channels) float32.
      to_kernel: result, like `kernel`, float32.
      to_weights: result, like `weights`.
      ring: (blocks, rows, columns, images, channels) float32.
      expanded: (W, images, channels) float32, a row of expanded images.
      inner: (W, images, channels) of x's type, a row of their gradient.
      total_x: (rows, W, images, Cin) float32, sum of `to_x` over blocks.
      program: parameters of the program.
    """
    step, block = pl.program_id(1), pl.program_id(2)
    held = Ring(program.strips, program.columns, ring.at[block])
    rows, columns = program.strips.rows, program.columns
    known = None
    if channels % weights.shape[-1]:
        lane = lax.broadcasted_iota(jnp.int32, ring.shape[3:], 1)
        known = lane < channels - block * weights.shape[-1]

    @pl.when(step == 0)
    def _() -> None:
        sums[block] = jnp.zeros(sums.shape[1:], sums.dtype)

    @pl.when((step == 0) & (pl.program_id(0) == 0))
    def _() -> None:
        to_weights[block] = jnp.zeros(to_weights.shape[1:], jnp.float32)
        to_kernel[block] = jnp.zeros(to_kernel.shape[1:], jnp.float32)

    def read(row: jax.Array, first: Index, count: int) -> jax.Array:
        place = row, pl.ds(first, count)
        pixels = [a[place].astype(jnp.float32) for a in (y, cotangent)]
        return program.visit(ARITHMETIC, *pixels, *_spread(small, block))

    def differentiate(unit: jax.Array, phase: int) -> None:
        row = unit * rows.factor + phase
        taps = held.row_taps(step, unit, phase)

        def expand(first: Index, count: int) -> None:
            place = pl.ds(first, count)
            expanded[place] = _expand(x[row, place], kernel[block])

        for_each(columns.pixels, COPIES, expand)

        def pixels(first: Index, count: int) -> None:
            numbers = [x_small[block, n] for n in range(x_small.shape[1])]
            states = [
                program.revisit(ARITHMETIC, expanded[first + pixel], *numbers)
                for pixel in range(count)
            ]

            def each(cells: dict[int, Cell], tap: tuple[int, int]) -> None:
                terms = [cell * states[pixel][1] for pixel, cell in cells.items()]
                folded = total(terms).reshape(-1, *weights.shape[3:])
                to_weights[block, *tap] += folded.sum(0)

            cells = held.sums(taps, weights.at[block], first, count, each)
            cells = [c * slope for c, (_, _, slope) in zip(cells, states, strict=True)]
            for pixel, cell in enumerate(cells):
                value = (cell * numbers[1]).astype(inner.dtype)
                inner[first + pixel] = value if known is None else (
                    jnp.where(known, value, jnp.zeros_like(value))
                )
            sums[block, 0] += total(cells)
            products = [c * x for c, (x, _, _) in zip(cells, states, strict=True)]
            sums[block, 1] += total(products)

        for_each(columns.pixels, PIXELS, pixels)
        flat = inner[...].reshape(-1, inner.shape[-1])
        source = x[row].reshape(-1, x.shape[-1])
        part = multiply(flat, kernel[block], (1, 1)).reshape(x.shape[1:])

        @pl.when(block == 0)
        def _() -> None:
            total_x[row] = part

        @pl.when(block > 0)
        def _() -> None:
            total_x[row] += part

        to_kernel[block] += multiply(source, flat, (0, 0))

        @pl.when(block == pl.num_programs(2) - 1)
        def _() -> None:
            to_x[row] = total_x[row].astype(to_x.dtype)

    held.fill(step, read)
    held.for_rows(step, differentiate)
