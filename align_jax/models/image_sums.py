"""Sums over an image's places of functions of wide arrays, each of which is read once.

XLA's own reduction is the reference and the default; on NVIDIA GPUs a Pallas kernel,
through Triton, takes its place.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from align_jax.kernels import INTERPRET, PLAIN, Kernels

ROWS, LANES, WARPS = 16, 64, 4  # places and channels of a tile; warps of a program
PROGRAMS = 2048  # at least, where the images are large enough to be cut

Visit = Callable[..., tuple[jax.Array, ...]]


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
    if kernels.kind == PLAIN:
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


def kernel_sums(visit: Visit, wide, small, count, interpret=False) -> list[jax.Array]:
    """`image_sums` by a kernel: a program sums a strip of one image's places."""
    batch, height, width, channels = wide[0].shape
    places, lanes = height * width, pl.cdiv(channels, LANES)
    strips = pl.cdiv(PROGRAMS, batch * lanes)
    rounds = pl.cdiv(places, strips * ROWS)  # of a strip
    strips = pl.cdiv(places, rounds * ROWS)
    sums = pl.pallas_call(
        partial(_sum_strip, visit, len(wide), rounds),
        out_shape=jax.ShapeDtypeStruct(
            (count, batch, strips, lanes * LANES), jnp.float32
        ),
        grid=(lanes, batch, strips),
        out_specs=pl.BlockSpec((count, 1, 1, LANES), lambda c, b, s: (0, b, s, c)),
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
    )(*(x.reshape(batch, places, channels) for x in wide), *small)
    return list(sums.sum(2)[..., :channels])


def _sum_strip(visit, wide_count, rounds, *refs):
    """The kernel: sums of `rounds` times `ROWS` places of one image."""
    *refs, out = refs
    wide, small = refs[:wide_count], refs[wide_count:]
    _, places, channels = wide[0].shape
    lane, image, strip = (pl.program_id(axis) for axis in range(3))
    channel = lane * LANES + jnp.arange(LANES)
    known = channel < channels
    small = [triton.load(x.at[image, channel], mask=known, other=0.0) for x in small]

    def add_rows(index, sums):
        place = (strip * rounds + index) * ROWS + jnp.arange(ROWS)
        inside = (place < places)[:, None] & known[None]
        tiles = [
            triton.load(
                x.at[image, place[:, None], channel[None]], mask=inside, other=0.0
            ).astype(jnp.float32)
            for x in wide
        ]
        found = visit(*tiles, *(x[None] for x in small))
        found = (jnp.broadcast_to(x, (ROWS, LANES)) for x in found)
        return tuple(
            total + jnp.where(inside, x, 0.0)
            for total, x in zip(sums, found, strict=True)
        )

    zeros = (jnp.zeros((ROWS, LANES), jnp.float32),) * out.shape[0]
    for index, total in enumerate(lax.fori_loop(0, rounds, add_rows, zeros)):
        out[index, 0, 0] = total.sum(0)
