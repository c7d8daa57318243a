"""Walks over wide arrays that read them once: sums of an image's places, and maps.

XLA's own programs are the reference and the default; on NVIDIA GPUs Pallas kernels,
through Triton, take their place. There XLA's are bound by their instructions, not by
memory: it neither joins a multiplication with an addition nor takes a short sigmoid.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from align_jax.kernels import INTERPRET, TRITON, Kernels

PROGRAMS = 1024  # at least, where the images are large enough to be cut
LANES = 1024  # numbers of a tile
WARPS = 4
LOADS = 4  # tiles' loads in flight, of all wide arrays together
FILLED = 0.85  # of a tile's lanes, at least, where that can be


class Arithmetic(NamedTuple):
    """How a walk computes, elementwise in float32.

    Attributes:
      sigmoid: of an array.
      multiply_add: a * b + c.
    """

    sigmoid: Callable[[jax.Array], jax.Array]
    multiply_add: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


PLAIN_ARITHMETIC = Arithmetic(jax.nn.sigmoid, lambda a, b, c: a * b + c)


class Tile(NamedTuple):
    """What a program has at a time: numbers of memory that are adjacent or nearly so.

    Attributes:
      channels: of a slab, which divides the channels or is 8 times a number.
      places: of them, one after the other; with the slab's channels at most `LANES`.
    """

    channels: int
    places: int


def image_sums(
    visit: Callable[..., Sequence[tuple[jax.Array, ...]]],
    wide: Sequence[jax.Array],
    small: Sequence[jax.Array],
    count: int,
    kernels: Kernels,
) -> list[jax.Array]:
    """Sums products that `visit` makes of every place, by image and channel.

    Args:
      visit: elementwise function of an `Arithmetic` and the arrays in float32, first
        wide then small ones, to the one or two factors of each of `count` products.
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


def image_map(
    visit: Callable[..., jax.Array],
    wide: Sequence[jax.Array],
    small: Sequence[jax.Array],
    kernels: Kernels,
) -> jax.Array:
    """What `visit` makes of every place.

    Args:
      visit: elementwise function as that of `image_sums`, to one array.
      wide: arrays (B, H, W, C).
      small: arrays (B, C) of an image's channels, float32.
      kernels: what computes it.

    Returns:
      An array (B, H, W, C) of the first wide one's type.
    """
    if kernels.kind not in (TRITON, INTERPRET):
        return visit(PLAIN_ARITHMETIC, *_spread(wide, small)).astype(wide[0].dtype)
    interpret = kernels.kind == INTERPRET

    def call(*arrays):
        parts = arrays[: len(wide)], arrays[len(wide) :]
        return kernel_map(visit, *parts, interpret)

    return kernels.by_batch(call, [*wide, *small])


def _spread(wide, small) -> list[jax.Array]:
    """All arrays in float32, as they are broadcast over places."""
    wide = [x.astype(jnp.float32) for x in wide]
    return wide + [x[:, None, None] for x in small]


def plain_sums(visit, wide, small) -> list[jax.Array]:
    """`image_sums` by XLA."""
    products = map(math.prod, visit(PLAIN_ARITHMETIC, *_spread(wide, small)))
    return [jnp.broadcast_to(x, wide[0].shape).sum((1, 2)) for x in products]


def kernel_sums(visit, wide, small, count, interpret=False):
    """`image_sums` by a kernel: a program sums a strip of one image's places."""
    batch, channels = len(wide[0]), wide[0].shape[-1]
    cut = Cut.of(wide[0].shape, len(wide))
    block = pl.BlockSpec((1, 1, 1, LANES), lambda c, b, s: (b, s, c, 0))
    shape = jax.ShapeDtypeStruct((batch, cut.strips, cut.slabs, LANES), jnp.float32)
    sums = pl.pallas_call(
        partial(_sum_strip, visit, len(wide), count, cut, interpret),
        out_shape=[shape] * count,
        grid=(cut.slabs, batch, cut.strips),
        out_specs=[block] * count,
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
    )(*map(_flatten_images, wide), *small)
    tile = cut.tile
    lanes = (batch, cut.strips, cut.slabs, tile.places, tile.channels)
    sums = [x[..., : tile.places * tile.channels].reshape(lanes) for x in sums]
    return [x.sum((1, 3)).reshape(batch, -1)[:, :channels] for x in sums]


def kernel_map(visit, wide, small, interpret=False) -> jax.Array:
    """`image_map` by a kernel: a program computes a strip of one image's places."""
    cut = Cut.of(wide[0].shape, len(wide))
    flat = [_flatten_images(x) for x in wide]
    out = pl.pallas_call(
        partial(_map_strip, visit, len(wide), cut, interpret),
        out_shape=jax.ShapeDtypeStruct(flat[0].shape, flat[0].dtype),
        grid=(cut.slabs, len(flat[0]), cut.strips),
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
    )(*flat, *small)
    return out.reshape(wide[0].shape)


def _flatten_images(x: jax.Array) -> jax.Array:
    """(B, H, W, C) to (B, H * W * C)."""
    return x.reshape(len(x), -1)


class Cut(NamedTuple):
    """How images are cut into programs.

    Attributes:
      places: of an image.
      channels: of an image.
      tile: a program goes through its part by tiles.
      slabs: of channels.
      strips: of places.
      rounds: tiles of a strip, at most.
      abreast: tiles that are loaded at once.
    """

    places: int
    channels: int
    tile: Tile
    slabs: int
    strips: int
    rounds: int
    abreast: int

    @classmethod
    def of(cls, shape: tuple[int, ...], arrays: int) -> "Cut":
        """The cut of arrays (B, H, W, C) that are gone through together."""
        batch, height, width, channels = shape
        places, tile = height * width, choose_tile(channels)
        slabs = pl.cdiv(channels, tile.channels)
        tiles = pl.cdiv(places, tile.places)
        rounds = pl.cdiv(tiles, pl.cdiv(PROGRAMS, batch * slabs))
        strips, abreast = pl.cdiv(tiles, rounds), max(LOADS // arrays, 1)
        return cls(places, channels, tile, slabs, strips, rounds, abreast)


def choose_tile(channels: int) -> Tile:
    """The tile of the widest slab that fills its lanes well enough, or best."""
    units = pl.cdiv(channels, 8)
    best, most = None, 0.0
    for slabs in range(1, units + 1):
        width = min(8 * pl.cdiv(units, slabs), channels)
        filled = channels * (LANES // width) / (slabs * LANES)
        if filled > most:
            best, most = Tile(width, LANES // width), filled
        if most >= FILLED:
            break
    return best


def fast_sigmoid(x: jax.Array) -> jax.Array:
    """1 / (1 + exp(-x)) to 1e-6 of it, in a kernel; numbers below 1e-38 are 0."""
    instructions = """{
        .reg .f32 t;
        mul.f32 t, $1, 0fBFB8AA3B;
        ex2.approx.ftz.f32 t, t;
        add.f32 t, t, 0f3F800000;
        rcp.approx.ftz.f32 $0, t;
    }"""  # the numbers are -log2(e) and 1
    return _instruct(instructions, x)


def fused_multiply_add(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """The sum a * b + c in one instruction, in a kernel."""
    return _instruct("fma.rn.f32 $0, $1, $2, $3;", *jnp.broadcast_arrays(a, b, c))


def _instruct(instructions: str, *arrays: jax.Array) -> jax.Array:
    """PTX instructions on every number; $0 is the result's register."""
    (result,) = triton.elementwise_inline_asm(
        instructions,
        args=arrays,
        constraints=",".join(["=f"] + ["f"] * len(arrays)),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(arrays[0].shape, jnp.float32)],
    )
    return result


KERNEL_ARITHMETIC = Arithmetic(fast_sigmoid, fused_multiply_add)


class _Strip:
    """A program's part of one image, in a kernel.

    Attributes:
      arithmetic: of the kernel.
      tiles: of it, the last of which may end after the image.
      whole: those before that.
      small: the lanes' numbers of the arrays (B, C).
    """

    def __init__(self, wide, small, cut, interpret):
        self.arithmetic = PLAIN_ARITHMETIC if interpret else KERNEL_ARITHMETIC
        slab, self._image, strip = (pl.program_id(axis) for axis in range(3))
        self._wide, self._cut, tile = wide, cut, cut.tile
        lane = jnp.arange(LANES)  # lax.div and lax.rem of it keep loads whole
        self._place = strip * cut.rounds * tile.places + lax.div(lane, tile.channels)
        channel = slab * tile.channels + lax.rem(lane, tile.channels)
        self._number = self._place * cut.channels + channel  # of the image's
        self._known = lane < tile.channels * tile.places
        if cut.slabs * tile.channels != cut.channels:
            self._known &= channel < cut.channels
        left = cut.places - strip * cut.rounds * tile.places
        self.tiles = jnp.minimum(pl.cdiv(left, tile.places), cut.rounds)
        self.whole = jnp.minimum(left // tile.places, cut.rounds)
        self.small = [
            triton.load(x.at[self._image, channel], mask=self._known, other=0.0)
            for x in small
        ]

    def inside(self, index):
        """Which of a tile's lanes are some of the image's."""
        place = self._place + index * self._cut.tile.places
        return self._known & (place < self._cut.places)

    def _at(self, ref, index):
        step = self._cut.tile.places * self._cut.channels
        return ref.at[self._image, self._number + index * step]

    def load(self, index, mask=None):
        """A tile's numbers of the wide arrays."""
        mask = self._known if mask is None else mask
        return [triton.load(self._at(x, index), mask=mask, other=0) for x in self._wide]

    def visit(self, visit, tile):
        """What is made of a tile and the small arrays."""
        tile = [x.astype(jnp.float32) for x in tile]
        return visit(self.arithmetic, *tile, *self.small)

    def store(self, ref, index, x):
        """Writes a tile."""
        triton.store(self._at(ref, index), x.astype(ref.dtype), mask=self.inside(index))


def _sum_strip(visit, wide_count, count, cut, interpret, *refs):
    """The kernel of sums."""
    refs, out = refs[:-count], refs[-count:]
    strip = _Strip(refs[:wide_count], refs[wide_count:], cut, interpret)

    def add(total, factors):
        if len(factors) == 1:
            return total + factors[0]
        return strip.arithmetic.multiply_add(*factors, total)

    def add_abreast(index, sums):
        tiles = [strip.load(index * cut.abreast + i) for i in range(cut.abreast)]
        for tile in tiles:
            sums = tuple(map(add, sums, strip.visit(visit, tile)))
        return sums

    def add_masked(index, sums):
        inside = strip.inside(index)
        found = strip.visit(visit, strip.load(index, inside))
        found = [(jnp.where(inside, x, 0.0), *others) for x, *others in found]
        return tuple(map(add, sums, found))

    totals = (jnp.zeros(LANES, jnp.float32),) * count
    turns = strip.whole // cut.abreast
    totals = lax.fori_loop(0, turns, add_abreast, totals)
    totals = lax.fori_loop(turns * cut.abreast, strip.tiles, add_masked, totals)
    for ref, total in zip(out, totals, strict=True):
        ref[0, 0, 0] = total


def _map_strip(visit, wide_count, cut, interpret, *refs):
    """The kernel of maps."""
    *refs, out = refs
    strip = _Strip(refs[:wide_count], refs[wide_count:], cut, interpret)

    def write_abreast(turn, _):
        indices = [turn * cut.abreast + i for i in range(cut.abreast)]
        tiles = [strip.load(index, strip.inside(index)) for index in indices]
        for index, tile in zip(indices, tiles, strict=True):
            strip.store(out, index, strip.visit(visit, tile))

    lax.fori_loop(0, pl.cdiv(strip.tiles, cut.abreast), write_abreast, None)
