"""A ring of rows in a TPU's vector memory, and sums over a convolution's taps.

A program has some images and walks down their rows, see `mosaic_axes`, with 128
channels at a time. It transforms each source pixel once, in float32, when it copies the
pixel to the ring. Each pixel of a result is a sum over taps of the ring's pixels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from align_jax.kernels.mosaic_axes import Axis, Strips

# Pixels of a row that a program computes at a time, and that it copies at a time.
PIXELS, COPIES = 4, 8

Index = jax.Array | int
Cell = jax.Array  # a pixel of some images and channels, (images, channels)
Tap = tuple[int, int]  # position in the convolution's kernel


class Ring(NamedTuple):
    """Rows of transformed pixels.

    Attributes:
      strips: the walk down the rows.
      columns: axis of the columns.
      rows: (strips.ring, columns.seen, images, channels) float32.
    """

    strips: Strips
    columns: Axis
    rows: jax.Ref

    def fill(
        self,
        step: jax.Array,
        read: Callable[..., jax.Array],
        end: Callable[[jax.Array], None] | None = None,
    ) -> None:
        """Copies a strip of the source to the ring, with zeros around the image.

        Args:
          step: number of the strip.
          read: function of a row of the strip, a first column and a number n of
            columns; it returns transformed pixels (n, images, channels) in float32.
          end: function of a row of the strip, called after the row was read.
        """
        strips, columns = self.strips, self.columns
        low, width = columns.low, min(columns.source, columns.seen - columns.low)

        @pl.when(step == 0)
        def _() -> None:
            @pl.loop(0, strips.ring)
            def _(row: jax.Array) -> None:
                for first, last in ((0, low), (low + width, columns.seen)):
                    if last > first:
                        shape = (last - first, *self.rows.shape[2:])
                        self.rows[row, first:last] = jnp.zeros(shape, jnp.float32)

            for row in range(strips.ring - strips.rows.low, strips.ring):
                self._clear(row)

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
                if end is not None:
                    end(row)

            @pl.when(source >= strips.rows.source)
            def _() -> None:
                self._clear(index)

    def _clear(self, row: Index) -> None:
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
        each: Callable[[dict[int, Cell], Tap], None] | None = None,
    ) -> list[Cell]:
        """Sums over taps for `count` pixels of a row.

        Args:
          taps: result of `row_taps`.
          weights: (k, k, repeats, channels) float32.
          first: first column, a multiple of the columns' factor.
          count: number of columns.
          each: function of the source's pixels under a tap, by number of the result's
            pixel, and of the tap.
        """
        columns = self.columns
        unit = lax.div(jnp.int32(first), jnp.int32(columns.factor))
        totals: list = [None] * count
        for row, i in taps:
            for j in range(weights.shape[1]):
                cells = {}
                for pixel in range(count):
                    ahead, phase = divmod(pixel, columns.factor)
                    for offset, tap in columns.taps[phase]:
                        if tap == j:
                            column = (unit + ahead) * columns.stride + offset
                            cells[pixel] = self.rows[row, column]
                weight = weights[i, j]
                for pixel, cell in cells.items():
                    term = _scaled(cell, weight)
                    before = totals[pixel]
                    totals[pixel] = term if before is None else before + term
                if each is not None and cells:
                    each(cells, (i, j))
        return totals


def _scaled(cell: Cell, weight: jax.Array) -> Cell:
    """Multiplies (images, channels) by (repeats, channels), repeated over images."""
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
