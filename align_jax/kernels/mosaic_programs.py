"""Programs of the kernels for TPUs in `mosaic_bottleneck`.

Their grid is (images, steps of the walk, blocks of channels).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from align_jax.kernels.mosaic_axes import Axis, Strips
from align_jax.kernels.mosaic_ring import (
    COPIES,
    PIXELS,
    Cell,
    Index,
    Ring,
    Tap,
    for_each,
    total,
)
from align_jax.kernels.walk_programs import Arithmetic

Visit = Callable[..., Any]
Revisit = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def tanh_sigmoid(x: jax.Array) -> jax.Array:
    """Returns 1 / (1 + exp(-x)) by the hyperbolic tangent, which TPUs compute."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


ARITHMETIC = Arithmetic(tanh_sigmoid, lambda a, b, c: a * b + c)


@dataclasses.dataclass(frozen=True)
class Program:
    """The parameters that a program is compiled for.

    Attributes:
      strips: the walk down the rows.
      columns: axis of the columns.
      visit: elementwise function of an `Arithmetic`, source pixels and the small
        numbers of their images and channels; it returns the pixel that is convolved.
        For gradients, it returns the pixel that is projected, too, before the other.
      channels: number of channels of all blocks.
    """

    strips: Strips
    columns: Axis
    visit: Visit
    channels: int

    def known(self, ring: jax.Ref) -> jax.Array | None:
        """Returns which channels of a block exist; None if all of all blocks do."""
        lanes = ring.shape[-1]
        if self.channels % lanes == 0:
            return None
        lane = lax.broadcasted_iota(jnp.int32, ring.shape[3:], 1)
        return lane < self.channels - pl.program_id(2) * lanes


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
      weights: (blocks, k, k, repeats, channels) float32, of the convolution.
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
        pixels = product(x[row, pl.ds(first, count)], kernel[block])
        return program.visit(ARITHMETIC, pixels, *_numbers(small, block))

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
    small: jax.Ref,
    cotangent: jax.Ref,
    back: jax.Ref,
    to_x: jax.Ref,
    sums: jax.Ref,
    to_kernel: jax.Ref,
    to_weights: jax.Ref,
    to_back: jax.Ref,
    ring: jax.Ref,
    expanded: jax.Ref,
    inner: jax.Ref,
    projected: jax.Ref,
    total_x: jax.Ref,
    *,
    program: Program,
    revisit: Revisit,
) -> None:
    """Computes gradients of `convolve_program`'s result y.

    Args:
      x: a strip (rows, W, images, Cin) of the forward pass's source.
      x_small: (blocks, m, images, channels) float32: mean, factor, ...
      kernel: argument of `convolve_program`.
      weights: argument of `convolve_program`.
      y: a strip (rows, W', images, channels).
      small: (blocks, n, images, channels) float32, for y.
      cotangent: a strip (rows, W', images, Cout).
      back: (blocks, Cout, channels) weights, from the cotangent to that of y's visit.
      to_x: result, like x.
      sums: result, (blocks, 2, images, channels) float32.
      to_kernel: result, like `kernel`, float32.
      to_weights: result, like `weights`.
      to_back: result, like `back`, float32.
      ring: (blocks, rows, columns, images, channels) float32.
      expanded: scratch (W, images, channels) for a row of expanded images.
      inner: scratch (W, images, channels) for a row of their gradient.
      projected: scratch (W', images, channels) for a row of gated pixels.
      total_x: (rows, W, images, Cin) float32, sum of `to_x` over blocks.
      program: parameters of the program.
      revisit: elementwise function like `program.visit`, of an expanded pixel; it
        returns the pixel minus its mean, its transformed value and the slope there.
    """
    step, block = pl.program_id(1), pl.program_id(2)
    held = Ring(program.strips, program.columns, ring.at[block])
    rows, columns = program.strips.rows, program.columns
    known, last = program.known(ring), pl.num_programs(2) - 1

    @pl.when(step == 0)
    def _() -> None:
        sums[block] = jnp.zeros(sums.shape[1:], sums.dtype)

    @pl.when((step == 0) & (pl.program_id(0) == 0))
    def _() -> None:
        to_weights[block] = jnp.zeros(to_weights.shape[1:], jnp.float32)
        to_kernel[block] = jnp.zeros(to_kernel.shape[1:], jnp.float32)
        to_back[block] = jnp.zeros(to_back.shape[1:], jnp.float32)

    def read(row: jax.Array, first: Index, count: int) -> jax.Array:
        place = row, pl.ds(first, count)
        wide = product(cotangent[place], back[block])
        pixels = y[place].astype(jnp.float32)
        numbers = _numbers(small, block)
        value, gradient = program.visit(ARITHMETIC, pixels, wide, *numbers)
        projected[place[1]] = value.astype(projected.dtype)
        return gradient

    def project(row: jax.Array) -> None:
        source, flat = flatten(cotangent[row]), flatten(projected[...])
        to_back[block] += multiply(source, flat, (0, 0))

    def differentiate(unit: jax.Array, phase: int) -> None:
        row = unit * rows.factor + phase
        taps = held.row_taps(step, unit, phase)

        def expand(first: Index, count: int) -> None:
            place = pl.ds(first, count)
            expanded[place] = product(x[row, place], kernel[block])

        def pixels(first: Index, count: int) -> None:
            numbers = [x_small[block, n] for n in range(x_small.shape[1])]
            states = [
                revisit(ARITHMETIC, expanded[first + pixel], *numbers)
                for pixel in range(count)
            ]

            def each(cells: dict[int, Cell], tap: Tap) -> None:
                terms = [cell * states[pixel][1] for pixel, cell in cells.items()]
                folded = total(terms).reshape(-1, *weights.shape[3:])
                to_weights[block, *tap] += folded.sum(0)

            cells = held.sums(taps, weights.at[block], first, count, each)
            cells = [c * slope for c, (_, _, slope) in zip(cells, states, strict=True)]
            for pixel, cell in enumerate(cells):
                value = cell * numbers[1]
                if known is not None:  # others may be NaN, which a product spreads
                    value = jnp.where(known, value, 0.0)
                inner[first + pixel] = value.astype(inner.dtype)
            products = [c * x for c, (x, _, _) in zip(cells, states, strict=True)]
            sums[block, 0] += total(cells)
            sums[block, 1] += total(products)

        for_each(columns.pixels, COPIES, expand)
        for_each(columns.pixels, PIXELS, pixels)
        flat, source = flatten(inner[...]), flatten(x[row])
        to_kernel[block] += multiply(source, flat, (0, 0))
        part = multiply(flat, kernel[block], (1, 1)).reshape(x.shape[1:])

        @pl.when(block == 0)
        def _() -> None:
            total_x[row] = part

        @pl.when(block > 0)
        def _() -> None:
            total_x[row] += part

        @pl.when(block == last)
        def _() -> None:
            to_x[row] = total_x[row].astype(to_x.dtype)

    held.fill(step, read, project)
    held.for_rows(step, differentiate)


def _numbers(small: jax.Ref, block: jax.Array) -> list[jax.Array]:
    """Returns the small numbers of a block of channels, (1, images, channels) each."""
    return [small[block, n][None] for n in range(small.shape[1])]


def flatten(x: jax.Array) -> jax.Array:
    """Returns pixels (n, images, C) as the rows of a matrix."""
    return x.reshape(-1, x.shape[-1])


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies pixels (n, images, C) by a kernel (C, C'), in float32."""
    return multiply(flatten(x), kernel, (1, 0)).reshape(*x.shape[:2], -1)


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
