"""Programs of the kernels of `image_walks` on NVIDIA GPUs, and their arithmetic."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from align_jax.kernels.walk_tiles import Cut

Index = jax.Array | int  # number of a tile
TileNumbers = list[jax.Array]  # of every wide array, (lanes,) each
Sums = tuple[jax.Array, ...]  # one sum per lane for each product, (lanes,) each


class Arithmetic(NamedTuple):
    """Elementwise operations of a walk, in float32.

    Attributes:
      sigmoid: function of x that returns 1 / (1 + exp(-x)).
      multiply_add: function of a, b and c that returns a * b + c.
    """

    sigmoid: Callable[[jax.Array], jax.Array]
    multiply_add: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


PLAIN_ARITHMETIC = Arithmetic(jax.nn.sigmoid, lambda a, b, c: a * b + c)


def fast_sigmoid(x: jax.Array) -> jax.Array:
    """Returns 1 / (1 + exp(-x)) to a relative error of 1e-6, in a kernel.

    Results below 1e-38 become 0.
    """
    instructions = """{
        .reg .f32 t;
        mul.f32 t, $1, 0fBFB8AA3B;
        ex2.approx.ftz.f32 t, t;
        add.f32 t, t, 0f3F800000;
        rcp.approx.ftz.f32 $0, t;
    }"""  # the constants are -log2(e) and 1
    return _instruct(instructions, x)


def fused_multiply_add(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """Returns a * b + c from a single instruction, in a kernel."""
    return _instruct("fma.rn.f32 $0, $1, $2, $3;", *jnp.broadcast_arrays(a, b, c))


def _instruct(instructions: str, *arrays: jax.Array) -> jax.Array:
    """Applies PTX to every number of float32 arrays of one shape.

    In the PTX, $0 is the result and $1, $2, ... are the arrays' numbers.
    """
    (result,) = triton.elementwise_inline_asm(
        instructions,
        args=arrays,
        constraints=",".join(["=f"] + ["f"] * len(arrays)),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(arrays[0].shape, jnp.float32)],
    )
    return result


KERNEL_ARITHMETIC = Arithmetic(fast_sigmoid, fused_multiply_add)


@dataclasses.dataclass(frozen=True)
class Walk:
    """The parameters that the programs of a walk are compiled for.

    Attributes:
      visit: elementwise function of an `Arithmetic` and the arrays, as in `image_sums`
        or `image_map`.
      wide: number of wide arrays, which come before the small one.
      cut: division of the images into programs.
      interpret: whether to compute as ordinary JAX.
    """

    visit: Callable
    wide: int
    cut: Cut
    interpret: bool


class Strip:
    """The part of one image that the running program computes, inside a kernel.

    A strip is a row of tiles, see `walk_tiles`. Each lane holds one number of a tile.

    Attributes:
      walk: parameters of the walk.
      arithmetic: elementwise operations of the kernel.
      tiles: number of tiles; the last one may extend beyond the image.
      whole: number of tiles that lie entirely inside the image.
      known: (lanes,) bool, false for lanes beyond the tile's numbers or the last
        channel.
      small: list of (lanes,) arrays, the small numbers of each lane's channel.
    """

    def __init__(self, arrays: Sequence[jax.Ref], walk: Walk) -> None:
        """Loads the small numbers.

        Args:
          arrays: `walk.wide` wide arrays (B, H * W * C), then at most one (B, n, C).
          walk: parameters of the walk.
        """
        self.walk, cut, tile = walk, walk.cut, walk.cut.tile
        self.arithmetic = PLAIN_ARITHMETIC if walk.interpret else KERNEL_ARITHMETIC
        slab, self._image, strip = (pl.program_id(axis) for axis in range(3))
        self._wide = arrays[: walk.wide]
        # lax.div and lax.rem keep the lanes' loads 16 bytes wide; // and % do not.
        lane = jnp.arange(cut.workload.lanes)
        self._pixel = strip * cut.rounds * tile.pixels + lax.div(lane, tile.channels)
        channel = slab * tile.channels + lax.rem(lane, tile.channels)
        self._number = self._pixel * cut.channels + channel  # index in the image
        self.known = lane < tile.channels * tile.pixels
        if cut.slabs * tile.channels != cut.channels:
            self.known &= channel < cut.channels
        left = cut.pixels - strip * cut.rounds * tile.pixels
        self.tiles = jnp.minimum(pl.cdiv(left, tile.pixels), cut.rounds)
        self.whole = jnp.minimum(left // tile.pixels, cut.rounds)
        self.small = [
            triton.load(x.at[self._image, n, channel], mask=self.known, other=0.0)
            for x in arrays[walk.wide :]
            for n in range(x.shape[1])
        ]

    def inside(self, index: Index) -> jax.Array:
        """Returns (lanes,) bools: whether each lane of a tile lies inside the image.

        `index` counts the strip's tiles from 0, here and in the other methods.
        """
        pixel = self._pixel + index * self.walk.cut.tile.pixels
        return self.known & (pixel < self.walk.cut.pixels)

    def _at(self, ref: jax.Ref, index: Index) -> Any:
        step = self.walk.cut.tile.pixels * self.walk.cut.channels
        return ref.at[self._image, self._number + index * step]

    def load(self, index: Index, mask: jax.Array) -> TileNumbers:
        """Loads a tile of every wide array, (lanes,) each, with 0 outside the mask."""
        return [triton.load(self._at(x, index), mask=mask, other=0) for x in self._wide]

    def visit(self, tile: Sequence[jax.Array]) -> Any:
        """Applies `walk.visit` to a tile, converted to float32, and the small numbers.

        Returns the result of `walk.visit`.
        """
        tile = [x.astype(jnp.float32) for x in tile]
        return self.walk.visit(self.arithmetic, *tile, *self.small)

    def store(self, ref: jax.Ref, index: Index, x: jax.Array) -> None:
        """Writes a tile (lanes,) where it lies inside the image."""
        triton.store(self._at(ref, index), x.astype(ref.dtype), mask=self.inside(index))


def sum_strip(*refs: jax.Ref, walk: Walk, count: int) -> None:
    """Sums the products over a strip's tiles, separately for each lane, as a kernel.

    Args:
      refs: input arrays, see `Strip`, and the output (count, lanes).
      walk: parameters of the walk.
      count: number of sums.
    """
    *arrays, out = refs
    strip = Strip(arrays, walk)
    abreast = walk.cut.workload.abreast
    turns = strip.whole // abreast

    def add(total: jax.Array, factors: tuple[jax.Array, ...]) -> jax.Array:
        if len(factors) == 1:
            return total + factors[0]
        a, b = factors
        return strip.arithmetic.multiply_add(a, b, total)

    def load_abreast(turn: Index) -> list[TileNumbers]:
        mask = strip.known & (turn < turns)
        return [strip.load(turn * abreast + offset, mask) for offset in range(abreast)]

    def add_abreast(
        turn: jax.Array, carry: tuple[Sums, list[TileNumbers]]
    ) -> tuple[Sums, list[TileNumbers]]:
        sums, tiles = carry
        coming = load_abreast(turn + 1)  # starts before the tiles are needed
        for tile in tiles:
            sums = tuple(map(add, sums, strip.visit(tile)))
        return sums, coming

    def add_masked(index: jax.Array, sums: Sums) -> Sums:
        inside = strip.inside(index)
        products = strip.visit(strip.load(index, inside))
        products = [(jnp.where(inside, x, 0.0), *others) for x, *others in products]
        return tuple(map(add, sums, products))

    totals = (jnp.zeros(walk.cut.workload.lanes, jnp.float32),) * count
    totals, _ = lax.fori_loop(0, turns, add_abreast, (totals, load_abreast(0)))
    totals = lax.fori_loop(turns * abreast, strip.tiles, add_masked, totals)
    for n, total in enumerate(totals):
        out[n] = total


def map_strip(*refs: jax.Ref, walk: Walk) -> None:
    """Applies the elementwise function to a strip, as a kernel.

    Args:
      refs: input arrays, see `Strip`, and the output (B, H * W * C).
      walk: parameters of the walk.
    """
    *arrays, out = refs
    strip, abreast = Strip(arrays, walk), walk.cut.workload.abreast

    def write_abreast(turn: jax.Array, _: None) -> None:
        indices = [turn * abreast + offset for offset in range(abreast)]
        tiles = [strip.load(index, strip.inside(index)) for index in indices]
        for index, tile in zip(indices, tiles, strict=True):
            strip.store(out, index, strip.visit(tile))

    lax.fori_loop(0, pl.cdiv(strip.tiles, abreast), write_abreast, None)
