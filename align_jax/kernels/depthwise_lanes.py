"""Layout of a depthwise kernel's lanes on an image.

A program is a block of lanes. A lane computes one channel of `LaneLayout.columns`
adjacent output columns. In each row, it loads the input columns that feed these output
columns, each a single time.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

WARP = 32  # threads per warp
VECTOR = 2  # channels per thread: k * k weights for each must fit in registers
OUTSIDE = 1 << 20  # a column beyond every image


class LaneLayout(NamedTuple):
    """Layout of the lanes of a program.

    Attributes:
      columns: number of adjacent output columns per lane (for a transposed convolution,
        number of adjacent groups of `stride` columns).
      slab: number of channels that stay together: lanes go through the slab's channels
        first, then through the columns, then on to the next slab.
      warps: number of warps per program, each of 32 * `VECTOR` lanes.
    """

    columns: int
    slab: int
    warps: int

    @property
    def block(self) -> int:
        """Number of lanes per program."""
        return WARP * VECTOR * self.warps

    def programs(self, width: int, channels: int) -> int:
        """Returns the number of programs that cover one image of `width` columns."""
        groups = pl.cdiv(width, self.columns)
        return pl.cdiv(channels, self.slab) * pl.cdiv(groups * self.slab, self.block)


def choose_layout(
    width: int, channels: int, kernel: int, columns: tuple[int, ...], warps: int
) -> LaneLayout:
    """Returns the layout that wastes the fewest lanes and loads.

    The slab of the layout is all channels.

    Args:
      width: number of output columns (for a transposed convolution, of groups of
        columns).
      channels: channels of the image.
      kernel: side of the kernel.
      columns: numbers of columns per lane to choose from; if all are above `width`, a
        lane has `width` columns.
      warps: number of warps per program.
    """

    def cost(layout: LaneLayout) -> float:
        lanes = layout.programs(width, channels) * layout.block
        # Neighbouring lanes of a program share loaded columns in the nearest cache.
        beside = max(layout.block // layout.slab, 1) * layout.columns
        reads = 1 + (kernel - 1) / min(beside, width)
        return lanes * layout.columns / (width * channels) + 0.3 * reads

    fitting = [n for n in columns if n <= width] or [width]
    return min((LaneLayout(n, channels, warps) for n in fitting), key=cost)


class Lanes(NamedTuple):
    """The lanes of one program.

    Attributes:
      group: (block,) int32 index of each lane's group of `LaneLayout.columns` columns.
      channel: (block,) int32 channel of each lane.
      column: (block,) int32 first output column of each lane; `OUTSIDE` for a lane
        beyond the last column or channel.
      channels: channels of the image.
    """

    group: jax.Array
    channel: jax.Array
    column: jax.Array
    channels: int


def lanes_of(layout: LaneLayout, width: int, channels: int) -> Lanes:
    """Returns the running program's lanes for an image of `width` columns.

    It is called inside a kernel.
    """
    groups = pl.cdiv(width, layout.columns)
    parts = pl.cdiv(groups * layout.slab, layout.block)
    program = pl.program_id(0)
    lane = lax.rem(program, parts) * layout.block + jnp.arange(layout.block)
    group = lax.div(lane, layout.slab)
    channel = lax.div(program, parts) * layout.slab + lax.rem(lane, layout.slab)
    valid = group < groups
    if channels % layout.slab:
        valid &= channel < channels
    column = jnp.where(valid, group * layout.columns, OUTSIDE)
    return Lanes(group, channel, column, channels)


def column_groups(width: int, left: int, stride: int) -> int:
    """Returns the number of groups of `stride` padded columns that an image touches.

    The image has `width` columns, after `left` columns of zeros.
    """
    return (left + width - 1) // stride + 1 - left // stride


def _inside(index: jax.Array, size: int) -> jax.Array:
    """Returns whether 0 <= index < size, from a single comparison."""
    return index.astype(jnp.uint32) < size


class ImageColumns(NamedTuple):
    """Adjacent columns of the rows of an image in memory, for every lane.

    Attributes:
      ref: (H, W * C) image, or (images, H, W * C) if `load` gets a `prefix` (image,).
      size: rows and columns of the image, (H, W).
      channels: number of channels C.
      column: (block,) first column of each lane; `OUTSIDE` for a lane without columns.
      offset: (block,) index, in a row of `ref`, of the lane's channel in that column.
    """

    ref: jax.Ref
    size: tuple[int, int]
    channels: int
    column: jax.Array
    offset: jax.Array

    def _mask(self, row: jax.Array, step: int) -> jax.Array:
        return _inside(row, self.size[0]) & _inside(self.column + step, self.size[1])

    def _at(self, row: jax.Array, step: int, prefix: tuple) -> Any:
        return self.ref.at[(*prefix, row, self.offset + step * self.channels)]

    def load(self, row: jax.Array, count: int, prefix: tuple = ()) -> list[jax.Array]:
        """Loads `count` columns of a row, from each lane's first column on.

        Args:
          row: () row of the image; rows outside the image count as zeros.
          count: number of columns.
          prefix: index of the image, (image,); () for a `ref` of one image.

        Returns:
          `count` arrays (block,), with zeros outside the image.
        """
        return [
            triton.load(
                self._at(row, step, prefix), mask=self._mask(row, step), other=0
            )
            for step in range(count)
        ]

    def store(self, row: jax.Array, step: int, value: jax.Array) -> None:
        """Writes `value` (block,) to the column `step` after each lane's first one.

        Nothing is written outside the image.
        """
        triton.store(
            self._at(row, step, ()),
            value.astype(self.ref.dtype),
            mask=self._mask(row, step),
        )


def image_of(
    ref: jax.Ref, size: tuple[int, int], lanes: Lanes, *, first: int, step: int
) -> ImageColumns:
    """Returns each lane's columns of an image in memory.

    The first column of a lane of group g (see `Lanes`) is `first + step * g`.

    Args:
      ref: (H, W * C) image, or (images, H, W * C).
      size: rows and columns of the image, (H, W).
      lanes: lanes of this program.
      first: first column of group 0.
      step: columns from one group to the next.
    """
    column = jnp.where(lanes.column < OUTSIDE, lanes.group * step + first, OUTSIDE)
    offset = (lanes.group * step + first) * lanes.channels + lanes.channel
    return ImageColumns(ref, size, lanes.channels, column, offset)


def in_float32(values: list[jax.Array]) -> list[jax.Array]:
    """Returns the values in float32."""
    return [value.astype(jnp.float32) for value in values]


def load_weights(ref: jax.Ref, k: int, lanes: Lanes) -> list[list[jax.Array]]:
    """Loads the weights of each lane's channel from ref (k * k, C), in float32.

    The weight of tap (i, j) is item `[i][j]` of the result, (block,). It is 0 in lanes
    without columns.
    """
    mask = lanes.column < OUTSIDE
    flat = [
        triton.load(ref.at[tap, lanes.channel], mask=mask, other=0).astype(jnp.float32)
        for tap in range(k * k)
    ]
    return [flat[i * k : (i + 1) * k] for i in range(k)]
