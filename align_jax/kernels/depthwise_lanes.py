"""How the lanes of a depthwise kernel's programs lie on an image.

A program is a block of lanes. A lane stands for one channel and `Tile.columns` adjacent
columns of the output: it loads the columns that these see once for each row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

WARP = 32  # threads
VECTOR = 2  # channels of a thread: its k * k weights each must fit in registers
OUTSIDE = 1 << 20  # a column beyond every image


class Tile(NamedTuple):
    """How the lanes of a program are laid out.

    Attributes:
      columns: adjacent output columns of a lane (for a transposed convolution, groups
        of `stride` columns).
      slab: channels that stay together: lanes go through the slab's channels first,
        then through the columns, then on to the next slab.
      warps: of a program, each of 32 * `VECTOR` lanes.
    """

    columns: int
    slab: int
    warps: int

    @property
    def block(self) -> int:
        """Lanes of a program."""
        return WARP * VECTOR * self.warps

    def programs(self, width: int, channels: int) -> int:
        """Programs that cover one image of `width` columns."""
        groups = pl.cdiv(width, self.columns)
        return pl.cdiv(channels, self.slab) * pl.cdiv(groups * self.slab, self.block)


def choose_tile(
    width: int, channels: int, kernel: int, columns: tuple[int, ...], warps: int
) -> Tile:
    """The tile that wastes fewest lanes and loads; its slab is all channels.

    Args:
      width: columns of the output.
      channels: of the image.
      kernel: side of the kernel.
      columns: that a lane may have.
      warps: of a program.
    """

    def cost(tile: Tile) -> float:
        lanes = tile.programs(width, channels) * tile.block
        # Neighbours in a program find each other's columns in the nearest cache.
        beside = max(tile.block // tile.slab, 1) * tile.columns
        reads = 1 + (kernel - 1) / min(beside, width)
        return lanes * tile.columns / (width * channels) + 0.3 * reads

    fitting = [n for n in columns if n <= width] or [width]
    return min((Tile(n, channels, warps) for n in fitting), key=cost)


class Lanes(NamedTuple):
    """The lanes of this program, each (block,) int32."""

    group: jax.Array
    channel: jax.Array
    column: jax.Array  # first output column; OUTSIDE for lanes that have none


def lanes_of(tile: Tile, width: int, channels: int) -> Lanes:
    """Channel and columns of this program's lanes for an image of `width` columns."""
    groups = pl.cdiv(width, tile.columns)
    parts = pl.cdiv(groups * tile.slab, tile.block)
    program = pl.program_id(0)
    lane = lax.rem(program, parts) * tile.block + jnp.arange(tile.block)
    group = lax.div(lane, tile.slab)
    channel = lax.div(program, parts) * tile.slab + lax.rem(lane, tile.slab)
    valid = group < groups
    if channels % tile.slab:
        valid &= channel < channels
    column = jnp.where(valid, group * tile.columns, OUTSIDE)
    return Lanes(group, channel, column)


def _inside(index: jax.Array, size: int) -> jax.Array:
    """Whether 0 <= index < size, in one comparison."""
    return index.astype(jnp.uint32) < size


class Image(NamedTuple):
    """Adjacent columns of the rows of an image in memory, for every lane.

    Attributes:
      ref: (H, W * C), or (images, H, W * C) with `prefix` (image,).
      size: (H, W).
      channels: C.
      column: (block,) first column, OUTSIDE or more for lanes without.
      offset: (block,) place of that column's channel in a row.
    """

    ref: object
    size: tuple[int, int]
    channels: int
    column: jax.Array
    offset: jax.Array

    def _mask(self, row: jax.Array, step: int) -> jax.Array:
        return _inside(row, self.size[0]) & _inside(self.column + step, self.size[1])

    def _place(self, row: jax.Array, step: int, prefix: tuple):
        return self.ref.at[(*prefix, row, self.offset + step * self.channels)]

    def load(self, row: jax.Array, count: int, prefix: tuple = ()) -> list[jax.Array]:
        """Loads `count` columns of a row, zeros outside the image."""
        return [
            triton.load(
                self._place(row, step, prefix), mask=self._mask(row, step), other=0
            )
            for step in range(count)
        ]

    def store(self, row: jax.Array, step: int, value: jax.Array) -> None:
        """Writes one column of a row where it is inside the image."""
        triton.store(
            self._place(row, step, ()),
            value.astype(self.ref.dtype),
            mask=self._mask(row, step),
        )


def image_of(ref, size, lanes: Lanes, first, step, channels) -> Image:
    """The image whose column `first + step * group` is the lane's first."""
    column = jnp.where(lanes.column < OUTSIDE, lanes.group * step + first, OUTSIDE)
    offset = (lanes.group * step + first) * channels + lanes.channel
    return Image(ref, size, channels, column, offset)


def in_float32(values: list[jax.Array]) -> list[jax.Array]:
    """The values in float32."""
    return [value.astype(jnp.float32) for value in values]


def load_weights(ref, k: int, lanes: Lanes) -> list[list[jax.Array]]:
    """Each lane's k x k weights, from ref (k * k, C)."""
    mask = lanes.column < OUTSIDE
    flat = [
        triton.load(ref.at[tap, lanes.channel], mask=mask, other=0).astype(jnp.float32)
        for tap in range(k * k)
    ]
    return [flat[i * k : (i + 1) * k] for i in range(k)]
