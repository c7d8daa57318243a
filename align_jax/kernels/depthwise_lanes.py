"""How the lanes of a depthwise kernel's programs lie on an image.

A program is a block of lanes. A lane stands for one channel and `LaneLayout.columns`
adjacent columns of the output: it loads the columns that these see once for each row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

WARP = 32  # threads
VECTOR = 2  # channels of a thread: its k * k weights each must fit in registers
OUTSIDE = 1 << 20  # a column beyond every image


class LaneLayout(NamedTuple):
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


def choose_layout(
    width: int, channels: int, kernel: int, columns: tuple[int, ...], warps: int
) -> LaneLayout:
    """The layout that wastes fewest lanes and loads; its slab is all channels.

    Args:
      width: columns of the output.
      channels: of the image.
      kernel: side of the kernel.
      columns: that a lane may have.
      warps: of a program.
    """

    def cost(layout: LaneLayout) -> float:
        lanes = layout.programs(width, channels) * layout.block
        # Neighbours in a program find each other's columns in the nearest cache.
        beside = max(layout.block // layout.slab, 1) * layout.columns
        reads = 1 + (kernel - 1) / min(beside, width)
        return lanes * layout.columns / (width * channels) + 0.3 * reads

    fitting = [n for n in columns if n <= width] or [width]
    return min((LaneLayout(n, channels, warps) for n in fitting), key=cost)


class Lanes(NamedTuple):
    """The lanes of this program.

    Attributes:
      group: (block,) int32, the group of columns.
      channel: (block,) int32.
      column: (block,) int32, the first output column; `OUTSIDE` for lanes without.
      channels: of the image.
    """

    group: jax.Array
    channel: jax.Array
    column: jax.Array
    channels: int


def lanes_of(layout: LaneLayout, width: int, channels: int) -> Lanes:
    """Channel and columns of this program's lanes for an image of `width` columns."""
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
    """Groups of `stride` padded columns that `width` columns after `left` touch."""
    return (left + width - 1) // stride + 1 - left // stride


def _inside(index: jax.Array, size: int) -> jax.Array:
    """Whether 0 <= index < size, in one comparison."""
    return index.astype(jnp.uint32) < size


class ImageColumns(NamedTuple):
    """Adjacent columns of the rows of an image in memory, for every lane.

    Attributes:
      ref: (H, W * C), or (images, H, W * C) with `prefix` (image,).
      size: (H, W).
      channels: C.
      column: (block,) first column, OUTSIDE or more for lanes without.
      offset: (block,) place of that column's channel in a row.
    """

    ref: jax.Ref
    size: tuple[int, int]
    channels: int
    column: jax.Array
    offset: jax.Array

    def _mask(self, row: jax.Array, step: int) -> jax.Array:
        return _inside(row, self.size[0]) & _inside(self.column + step, self.size[1])

    def _place(self, row: jax.Array, step: int, prefix: tuple) -> Any:
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


def image_of(
    ref: jax.Ref, size: tuple[int, int], lanes: Lanes, *, first: int, step: int
) -> ImageColumns:
    """Columns of an image in memory; a lane's first is `first + step * group`.

    Args:
      ref: (H, W * C) or (images, H, W * C).
      size: (H, W).
      lanes: of this program.
      first: column of the first group.
      step: columns from a group to the next.
    """
    column = jnp.where(lanes.column < OUTSIDE, lanes.group * step + first, OUTSIDE)
    offset = (lanes.group * step + first) * lanes.channels + lanes.channel
    return ImageColumns(ref, size, lanes.channels, column, offset)


def in_float32(values: list[jax.Array]) -> list[jax.Array]:
    """The values in float32."""
    return [value.astype(jnp.float32) for value in values]


def load_weights(ref: jax.Ref, k: int, lanes: Lanes) -> list[list[jax.Array]]:
    """Each lane's k x k weights, from ref (k * k, C)."""
    mask = lanes.column < OUTSIDE
    flat = [
        triton.load(ref.at[tap, lanes.channel], mask=mask, other=0).astype(jnp.float32)
        for tap in range(k * k)
    ]
    return [flat[i * k : (i + 1) * k] for i in range(k)]
