"""How the kernels of `mosaic_bottleneck` cut arrays into parts for their programs."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from align_jax.kernels.mosaic_axes import Axis, Strips

IMAGES = 16  # of a program: a tile of bfloat16 has 16 rows
LANES = 128  # channels of a block
SUBLANES = 8
# Vector memory for a program's strips and ring, of the 128 MiB of v5e and v6e.
PROGRAM_BYTES = 32 * 2**20
VECTOR_BYTES = 100 * 2**20  # limit of a program
MOST_UNITS = 8

float32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


def images_of(group: int) -> int:
    """Returns the images of a program, which are of one group of `group` images."""
    return math.gcd(group, IMAGES)


def options(axes: int) -> pltpu.CompilerParams:
    """Returns the compiler's options for a grid of `axes` axes."""
    return pltpu.CompilerParams(
        dimension_semantics=(pltpu.ARBITRARY,) * axes, vmem_limit_bytes=VECTOR_BYTES
    )


def turn(x: jax.Array) -> jax.Array:
    """Returns (H, W, B, C) of (B, H, W, C), as the TPU's compiler lays images out."""
    return x.transpose(1, 2, 0, 3)


def turn_back(x: jax.Array) -> jax.Array:
    """Reverts `turn`."""
    return x.transpose(2, 0, 1, 3)


def split_channels(x: jax.Array) -> jax.Array:
    """Splits the last axis into blocks, (..., C) to (blocks, ..., LANES), by zeros."""
    lanes = min(x.shape[-1], LANES)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % lanes)])
    return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, lanes), -2, 0)


def join_channels(x: jax.Array, channels: int) -> jax.Array:
    """Reverts `split_channels`."""
    x = jnp.moveaxis(x, 0, -2)
    return x.reshape(*x.shape[:-2], -1)[..., :channels]


def split_small(small: jax.Array) -> jax.Array:
    """Returns (blocks, n, B, LANES) of (B, n, C)."""
    return split_channels(small.transpose(1, 0, 2))


def join_small(small: jax.Array, channels: int) -> jax.Array:
    """Reverts `split_small`."""
    return join_channels(small, channels).transpose(1, 0, 2)


def split_weights(weights: jax.Array, images: int) -> jax.Array:
    """Returns (blocks, k, k, repeats, LANES) of (k, k, 1, C), in float32.

    They are repeated for the images of a tile, or for all if these fill no tile.
    """
    repeats = SUBLANES if images % SUBLANES == 0 else images
    return split_channels(jnp.tile(weights.astype(jnp.float32), (1, 1, repeats, 1)))


def whole(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """All of x for each program."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


class Cut(NamedTuple):
    """The parts of images that programs with a convolution read and write.

    Attributes:
      strips: the walk down the rows.
      columns: axis of the columns.
      images: images of a program.
    """

    strips: Strips
    columns: Axis
    images: int

    def small(self, x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
        """The images of x (blocks, n, B, LANES)."""
        shape = (*x.shape[:2], self.images, x.shape[-1])
        return pl.BlockSpec(shape, lambda b, t, c: (0, 0, b, 0))

    def read(self, channels: int) -> pl.BlockSpec:
        """Strips of all channels of the source."""
        shape = (self.strips.read, self.columns.source, self.images, channels)
        last = self.strips.last_read
        return pl.BlockSpec(shape, lambda b, t, c: (jnp.minimum(t, last), 0, b, 0))

    def read_blocks(self, channels: int) -> pl.BlockSpec:
        """Strips of blocks of channels of the source."""
        lanes, last = min(channels, LANES), self.strips.last_read
        shape = (self.strips.read, self.columns.source, self.images, lanes)
        final = pl.cdiv(channels, LANES) - 1

        def place(b: jax.Array, t: jax.Array, c: jax.Array) -> tuple:
            # After the last strip, its last block stays.
            return jnp.minimum(t, last), 0, b, jnp.where(t > last, final, c)

        return pl.BlockSpec(shape, place)

    def written(self, channels: int) -> pl.BlockSpec:
        """Strips of all channels of the result."""
        shape = (self.strips.written, self.columns.pixels, self.images, channels)
        return pl.BlockSpec(shape, lambda b, t, c: (jnp.maximum(t - 1, 0), 0, b, 0))

    def written_blocks(self, channels: int) -> pl.BlockSpec:
        """Strips of blocks of channels of the result."""
        lanes = min(channels, LANES)
        shape = (self.strips.written, self.columns.pixels, self.images, lanes)

        def place(b: jax.Array, t: jax.Array, c: jax.Array) -> tuple:
            # Before the first strip is written, its first block stays.
            return jnp.maximum(t - 1, 0), 0, b, jnp.where(t == 0, 0, c)

        return pl.BlockSpec(shape, place)


def cut_rows(
    rows: Axis, columns: Axis, images: int, *, ring: int, read: int, written: int
) -> Cut:
    """Cuts images into the longest strips that fit `PROGRAM_BYTES`.

    Args:
      rows: axis of the rows.
      columns: axis of the columns.
      images: images of a program.
      ring: bytes of an image's pixel in the ring.
      read: bytes of a pixel of the sources.
      written: bytes of a pixel of the results, and of scratch arrays of their size.
    """

    def size(strips: Strips) -> int:
        pixels = read * strips.read * columns.source
        pixels += written * strips.written * columns.pixels
        return images * (pixels + ring * strips.ring * columns.seen)

    units = min(rows.units, MOST_UNITS)
    while units > 1 and size(Strips(rows, units)) > PROGRAM_BYTES:
        units -= 1
    # Strips of equal length.
    strips = Strips(rows, pl.cdiv(rows.units, pl.cdiv(rows.units, units)))
    while not strips.fits:
        strips = strips._replace(units=strips.units + 1)
    return Cut(strips, columns, images)


def lanes_of(channels: int) -> int:
    """Returns the numbers that `channels` take in vector memory."""
    return pl.cdiv(channels, LANES) * LANES
