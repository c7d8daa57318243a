"""Sums over an image's places of functions of wide arrays, each of which is read once.

XLA's own reduction is the reference and the default; on NVIDIA GPUs a Pallas kernel,
through Triton, takes its place.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from align_jax.kernels import INTERPRET, TRITON, Kernels

PROGRAMS = 2048  # at least, where the images are large enough to be cut

Visit = Callable[..., tuple[jax.Array, ...]]


class Tile(NamedTuple):
    """Places and channels of what a program has at a time, and its warps."""

    places: int = 16
    channels: int = 64
    warps: int = 4


TILE = Tile()


def image_sums(
    visit: Visit,
    wide: Sequence[jax.Array],
    small: Sequence[jax.Array],
    count: int,
    kernels: Kernels,
) -> list[jax.Array]:
    """Sums what `visit` makes of every place, by image and channel.

    Args:
      visit: elementwise function of the arrays in float32, first wide then small ones,
        to `count` arrays.
      wide: arrays (B, H, W, C).
      small: arrays (B, C) of an image's channels, float32.
      count: number of sums.
      kernels: what computes them.

    Returns:
      `count` arrays (B, C) float32.
    """
    if kernels.kind not in (TRITON, INTERPRET):
        return plain_sums(visit, wide, small)
    interpret = kernels.kind == INTERPRET

    def call(*arrays):
        parts = arrays[: len(wide)], arrays[len(wide) :]
        return kernel_sums(visit, *parts, count, interpret)

    return kernels.by_batch(call, [*wide, *small])


def plain_sums(visit: Visit, wide, small) -> list[jax.Array]:
    """`image_sums` by XLA."""
    wide = [x.astype(jnp.float32) for x in wide]
    sums = visit(*wide, *(x[:, None, None] for x in small))
    shape = wide[0].shape
    return [jnp.broadcast_to(x, shape).sum((1, 2)) for x in sums]


def kernel_sums(
    visit: Visit, wide, small, count, interpret=False, tile=TILE
) -> list[jax.Array]:
    """`image_sums` by a kernel: a program sums a strip of one image's places."""
    batch, height, width, channels = wide[0].shape
    places, slabs = height * width, pl.cdiv(channels, tile.channels)
    strips = pl.cdiv(PROGRAMS, batch * slabs)
    rounds = pl.cdiv(places, strips * tile.places)  # of a strip
    strips = pl.cdiv(places, rounds * tile.places)
    sums = [(batch, strips, slabs * tile.channels)] * count
    block = pl.BlockSpec((1, 1, tile.channels), lambda c, b, s: (b, s, c))
    sums = pl.pallas_call(
        partial(_sum_strip, visit, len(wide), count, rounds, tile),
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in sums],
        grid=(slabs, batch, strips),
        out_specs=[block] * count,
        compiler_params=triton.CompilerParams(num_warps=tile.warps),
        interpret=interpret,
    )(*(x.reshape(batch, places, channels) for x in wide), *small)
    return [x.sum(1)[:, :channels] for x in sums]


def _sum_strip(visit, wide_count, count, rounds, tile, *refs):
    """The kernel: sums of `rounds` tiles of one image."""
    refs, out = refs[:-count], refs[-count:]
    wide, small = refs[:wide_count], refs[wide_count:]
    _, places, channels = wide[0].shape
    slab, image, strip = (pl.program_id(axis) for axis in range(3))
    channel = slab * tile.channels + jnp.arange(tile.channels)
    known = channel < channels
    small = [triton.load(x.at[image, channel], mask=known, other=0.0) for x in small]

    def add_rows(index, sums):
        place = (strip * rounds + index) * tile.places + jnp.arange(tile.places)
        inside = (place < places)[:, None] & known[None]
        tiles = [
            triton.load(
                x.at[image, place[:, None], channel[None]], mask=inside, other=0.0
            ).astype(jnp.float32)
            for x in wide
        ]
        found = visit(*tiles, *(x[None] for x in small))
        found = (jnp.broadcast_to(x, (tile.places, tile.channels)) for x in found)
        return tuple(
            total + jnp.where(inside, x, 0.0)
            for total, x in zip(sums, found, strict=True)
        )

    zeros = (jnp.zeros((tile.places, tile.channels), jnp.float32),) * count
    totals = lax.fori_loop(0, rounds, add_rows, zeros)
    for ref, total in zip(out, totals, strict=True):
        ref[0, 0] = total.sum(0)
