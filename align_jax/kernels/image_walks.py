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

from align_jax.devices.kernel_choice import INTERPRET, TRITON, Kernels

FILLED = 0.85  # of a tile's lanes, at least, where that can be


class Grid(NamedTuple):
    """How much is done at a time; `benchmarks.normalise --choices` has tried others.

    Attributes:
      lanes: numbers of a tile.
      warps: of a program.
      abreast: tiles that are loaded at once.
      programs: at least, where the images are large enough to be cut.
      rounds: tiles of a program, at least: its sums are written and read again.
    """

    lanes: int = 1024
    warps: int = 8
    abreast: int = 2
    programs: int = 2048
    rounds: int = 16


GRID = Grid()


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
      places: of them, one after the other; with the slab's channels at most a tile.
    """

    channels: int
    places: int


def image_sums(
    visit: Callable[..., Sequence[tuple[jax.Array, ...]]],
    wide: Sequence[jax.Array],
    small: jax.Array | None,
    count: int,
    kernels: Kernels,
    images: int = 1,
) -> jax.Array:
    """Sums products that `visit` makes of every place, by channel and images.

    Args:
      visit: elementwise function of an `Arithmetic` and the arrays in float32, first
        wide ones, then n small ones, to the one or two factors of each of `count`
        products.
      wide: arrays (B, H, W, C).
      small: (B, n, C) n numbers of an image's channels, float32; None for none.
      count: number of sums.
      kernels: what computes them.
      images: adjacent ones that are summed together.

    Returns:
      (B / images, count, C) float32.
    """
    if kernels.kind not in (TRITON, INTERPRET):
        return add_images(plain_sums(visit, wide, small), images)
    interpret = kernels.kind == INTERPRET
    arrays = [*wide] if small is None else [*wide, small]
    held = math.gcd(images, len(wide[0]) // kernels.devices)  # of them on a device

    def call(*arrays):
        return kernel_sums(visit, arrays, len(wide), count, interpret, images=held)

    return add_images(kernels.by_batch(call, arrays), images // held)


def add_images(sums: jax.Array, images: int) -> jax.Array:
    """Sums of adjacent images (B, ...), (B / images, ...)."""
    return sums.reshape(-1, images, *sums.shape[1:]).sum(1)


def image_map(
    visit: Callable[..., jax.Array],
    wide: Sequence[jax.Array],
    small: jax.Array,
    kernels: Kernels,
) -> jax.Array:
    """What `visit` makes of every place.

    Args:
      visit: elementwise function as that of `image_sums`, to one array.
      wide: arrays (B, H, W, C).
      small: (B, n, C) n numbers of an image's channels, float32.
      kernels: what computes it.

    Returns:
      An array (B, H, W, C) of the first wide one's type.
    """
    if kernels.kind not in (TRITON, INTERPRET):
        return visit(PLAIN_ARITHMETIC, *_spread(wide, small)).astype(wide[0].dtype)
    interpret = kernels.kind == INTERPRET

    def call(*arrays):
        return kernel_map(visit, arrays, len(wide), interpret)

    return kernels.by_batch(call, [*wide, small])


def _spread(wide, small) -> list[jax.Array]:
    """All arrays in float32, as they are broadcast over places."""
    spread = [] if small is None else jnp.unstack(small[:, :, None, None], axis=1)
    return [x.astype(jnp.float32) for x in wide] + list(spread)


def plain_sums(visit, wide, small) -> jax.Array:
    """`image_sums` by XLA."""
    products = map(math.prod, visit(PLAIN_ARITHMETIC, *_spread(wide, small)))
    shape = wide[0].shape
    return jnp.stack([jnp.broadcast_to(x, shape).sum((1, 2)) for x in products], 1)


def kernel_sums(
    visit, arrays, wide, count, interpret=False, grid=GRID, images=1
) -> jax.Array:
    """`image_sums` by a kernel: a program sums a strip of one image's places.

    Args:
      visit: as there.
      arrays: `wide` wide ones and at most one of small numbers.
      wide: how many.
      count: as there.
      interpret: as ordinary JAX, on any platform, slowly.
      grid: how much is done at a time.
      images: as there.
    """
    batch, *_, channels = arrays[0].shape
    cut = Cut.of(arrays[0].shape, grid)
    sums = pl.pallas_call(
        partial(_sum_strip, visit, wide, count, cut, interpret),
        out_shape=jax.ShapeDtypeStruct(
            (cut.slabs, count, batch, cut.strips, grid.lanes), jnp.float32
        ),
        grid=(cut.slabs, batch, cut.strips),
        out_specs=pl.BlockSpec(
            (None, count, None, None, grid.lanes), lambda c, b, s: (c, 0, b, s, 0)
        ),
        compiler_params=triton.CompilerParams(num_warps=cut.grid.warps),
        interpret=interpret,
    )(*_flatten_images(arrays, wide))
    tile, parts = cut.tile, images * cut.strips
    sums = sums[..., : tile.places * tile.channels]
    # What is summed is adjacent: XLA then does it in parallel.
    shape = (cut.slabs, count, batch // images, parts, tile.places, tile.channels)
    sums = sums.reshape(shape).sum((3, 4))
    sums = sums.transpose(2, 1, 0, 3).reshape(batch // images, count, -1)
    return sums[..., :channels]


def kernel_map(visit, arrays, wide, interpret=False, grid=GRID) -> jax.Array:
    """`image_map` by a kernel, see `kernel_sums`."""
    cut = Cut.of(arrays[0].shape, grid)
    flat = _flatten_images(arrays, wide)
    out = pl.pallas_call(
        partial(_map_strip, visit, wide, cut, interpret),
        out_shape=jax.ShapeDtypeStruct(flat[0].shape, flat[0].dtype),
        grid=(cut.slabs, len(flat[0]), cut.strips),
        compiler_params=triton.CompilerParams(num_warps=cut.grid.warps),
        interpret=interpret,
    )(*flat)
    return out.reshape(arrays[0].shape)


def _flatten_images(arrays: Sequence[jax.Array], wide: int) -> list[jax.Array]:
    """The wide ones of (B, H, W, C) as (B, H * W * C)."""
    return [x.reshape(len(x), -1) if n < wide else x for n, x in enumerate(arrays)]


class Cut(NamedTuple):
    """How images are cut into programs.

    Attributes:
      grid: how much a program does at a time.
      places: of an image.
      channels: of an image.
      tile: a program goes through its part by tiles.
      slabs: of channels.
      strips: of places.
      rounds: tiles of a strip, at most.
    """

    grid: Grid
    places: int
    channels: int
    tile: Tile
    slabs: int
    strips: int
    rounds: int

    @classmethod
    def of(cls, shape: tuple[int, ...], grid: Grid) -> "Cut":
        """The cut of arrays (B, H, W, C)."""
        batch, height, width, channels = shape
        places, tile = height * width, choose_tile(channels, grid.lanes)
        slabs = pl.cdiv(channels, tile.channels)
        tiles = pl.cdiv(places, tile.places)
        rounds = pl.cdiv(tiles, pl.cdiv(grid.programs, batch * slabs))
        rounds = max(rounds, min(tiles, grid.rounds))
        strips = pl.cdiv(tiles, rounds)
        return cls(grid, places, channels, tile, slabs, strips, rounds)


def choose_tile(channels: int, lanes: int) -> Tile:
    """The tile of the widest slab that fills its lanes well enough, or best."""
    units = pl.cdiv(channels, 8)
    best, most = None, 0.0
    for slabs in range(1, units + 1):
        width = min(8 * pl.cdiv(units, slabs), channels)
        filled = channels * (lanes // width) / (slabs * lanes)
        if filled > most:
            best, most = Tile(width, lanes // width), filled
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
      known: lanes that stand for some number.
      small: the lanes' small numbers.
    """

    def __init__(self, arrays, wide, cut, interpret):
        self.arithmetic = PLAIN_ARITHMETIC if interpret else KERNEL_ARITHMETIC
        slab, self._image, strip = (pl.program_id(axis) for axis in range(3))
        self._wide, self._cut, tile = arrays[:wide], cut, cut.tile
        lane = jnp.arange(cut.grid.lanes)  # lax.div and lax.rem of it keep loads whole
        self._place = strip * cut.rounds * tile.places + lax.div(lane, tile.channels)
        channel = slab * tile.channels + lax.rem(lane, tile.channels)
        self._number = self._place * cut.channels + channel  # of the image's
        self.known = lane < tile.channels * tile.places
        if cut.slabs * tile.channels != cut.channels:
            self.known &= channel < cut.channels
        left = cut.places - strip * cut.rounds * tile.places
        self.tiles = jnp.minimum(pl.cdiv(left, tile.places), cut.rounds)
        self.whole = jnp.minimum(left // tile.places, cut.rounds)
        self.small = [
            triton.load(x.at[self._image, n, channel], mask=self.known, other=0.0)
            for x in arrays[wide:]
            for n in range(x.shape[1])
        ]

    def inside(self, index):
        """Which of a tile's lanes are some of the image's."""
        place = self._place + index * self._cut.tile.places
        return self.known & (place < self._cut.places)

    def _at(self, ref, index):
        step = self._cut.tile.places * self._cut.channels
        return ref.at[self._image, self._number + index * step]

    def load(self, index, mask):
        """A tile's numbers of the wide arrays."""
        return [triton.load(self._at(x, index), mask=mask, other=0) for x in self._wide]

    def visit(self, visit, tile):
        """What is made of a tile and the small arrays."""
        tile = [x.astype(jnp.float32) for x in tile]
        return visit(self.arithmetic, *tile, *self.small)

    def store(self, ref, index, x):
        """Writes a tile."""
        triton.store(self._at(ref, index), x.astype(ref.dtype), mask=self.inside(index))


def _sum_strip(visit, wide, count, cut, interpret, *refs):
    """The kernel of sums."""
    *arrays, out = refs
    strip = _Strip(arrays, wide, cut, interpret)
    abreast = cut.grid.abreast
    turns = strip.whole // abreast

    def add(total, factors):
        if len(factors) == 1:
            return total + factors[0]
        return strip.arithmetic.multiply_add(*factors, total)

    def load_abreast(turn):
        mask = strip.known & (turn < turns)
        return [strip.load(turn * abreast + place, mask) for place in range(abreast)]

    def add_abreast(turn, carry):
        sums, tiles = carry
        coming = load_abreast(turn + 1)  # asked for before it is needed
        for tile in tiles:
            sums = tuple(map(add, sums, strip.visit(visit, tile)))
        return sums, coming

    def add_masked(index, sums):
        inside = strip.inside(index)
        found = strip.visit(visit, strip.load(index, inside))
        found = [(jnp.where(inside, x, 0.0), *others) for x, *others in found]
        return tuple(map(add, sums, found))

    totals = (jnp.zeros(cut.grid.lanes, jnp.float32),) * count
    totals, _ = lax.fori_loop(0, turns, add_abreast, (totals, load_abreast(0)))
    totals = lax.fori_loop(turns * abreast, strip.tiles, add_masked, totals)
    for n, total in enumerate(totals):
        out[n] = total


def _map_strip(visit, wide, cut, interpret, *refs):
    """The kernel of maps."""
    *arrays, out = refs
    strip, abreast = _Strip(arrays, wide, cut, interpret), cut.grid.abreast

    def write_abreast(turn, _):
        indices = [turn * abreast + place for place in range(abreast)]
        tiles = [strip.load(index, strip.inside(index)) for index in indices]
        for index, tile in zip(indices, tiles, strict=True):
            strip.store(out, index, strip.visit(visit, tile))

    lax.fori_loop(0, pl.cdiv(strip.tiles, abreast), write_abreast, None)
