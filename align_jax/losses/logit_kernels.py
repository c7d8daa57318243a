"""Pallas Triton kernels of the contrastive loss, which never write logits to memory.

Each kernel multiplies bfloat16 embeddings tile by tile, and finishes a tile before its
float32 logits leave the chip. `statistics_kernel` writes the log-sum-exp and the
maximum, over wrong candidates, of every row and column of a tile. `gradients_kernel`
writes the gradient of a tile's logits, in bfloat16.

Logits and log-sum-exps are in base 2 here, like the hardware's exponential:
z_ij = x_i . y_j log2(e) / temperature. One exponential per logit serves both directions
if a tile has wrong candidates only, and if the maxima of its rows and columns (for the
gradient, their log-sum-exps) are within `SPREAD` of each other.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from align_jax.devices.kernel_choice import INTERPRET
from align_jax.losses.tiles import EXCLUDED, Tiling

LOG2E = math.log2(math.e)
# Exponentials below 2^-126 are 0; that is negligible in a sum of at least 2^-SPREAD.
SPREAD = 80.0
BAND = 8  # rows of tiles per band, few enough that operands stay in the L2 cache


@dataclasses.dataclass(frozen=True)
class TileShape:
    """Size of a kernel's tiles; rows, columns and depth are powers of two.

    Attributes:
      rows: images per tile.
      columns: texts per tile.
      depth: numbers of an embedding that are multiplied at a time.
      warps: number of warps, of 32 threads each, that share a tile.
      stages: parts of the embeddings in shared memory, one in use, the others loading.
    """

    rows: int = 256
    columns: int = 128
    depth: int = 64
    warps: int = 8
    stages: int = 3


@dataclasses.dataclass(frozen=True)
class TileOutput:
    """An array of which every tile of a `LogitGrid` writes a part.

    Attributes:
      size: size of the array.
      part: size of a part.
      offset: function from a tile's row and column to the part's offset, in parts.
      dtype: number type of the array.
    """

    size: tuple[int, int]
    part: tuple[int, int]
    offset: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class LogitGrid:
    """The tiles of n images by T texts.

    Attributes:
      images: number of images n.
      texts: number of texts T.
      shape: size of a tile.
      tiling: number of pairs N, groups, and whether kernels are interpreted.
    """

    images: int
    texts: int
    shape: TileShape
    tiling: Tiling

    @property
    def rows(self) -> int:
        """Number of rows of tiles."""
        return -(-self.images // self.shape.rows)

    @property
    def columns(self) -> int:
        """Number of columns of tiles."""
        return -(-self.texts // self.shape.columns)

    @property
    def height(self) -> int:
        """Number of images, padded to whole tiles."""
        return self.rows * self.shape.rows

    @property
    def width(self) -> int:
        """Number of texts, padded to whole tiles."""
        return self.columns * self.shape.columns

    def pad(self, ximg: jax.Array, ytxt: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Pads images (n, D) and texts (any number, D) with zeros to whole tiles.

        D becomes a multiple of the tile's `depth`.
        """
        depth = (0, -ximg.shape[1] % self.shape.depth)
        ximg = jnp.pad(ximg, ((0, self.height - len(ximg)), depth))
        return ximg, jnp.pad(ytxt, ((0, -len(ytxt) % self.shape.columns), depth))

    def tile_at(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the row and column of the tile of a grid step.

        Steps go from band to band, and within a band column by column.
        """
        band = lax.div(step, BAND * self.columns)
        within = step - band * (BAND * self.columns)
        height = jnp.minimum(self.rows - band * BAND, BAND)
        column = lax.div(within, height)
        return band * BAND + within - column * height, column

    def call(
        self,
        kernel: Callable[..., None],
        outputs: Sequence[TileOutput],
        numbers: jax.Array,
        start: jax.Array,
        inputs: Sequence[jax.Array],
    ) -> Sequence[jax.Array]:
        """Runs a kernel on every tile.

        Args:
          kernel: function of this grid, numbers, start, and the tile's inputs and
            outputs.
          outputs: shapes of the arrays that the kernel writes; these are returned.
          numbers: vector that all tiles share.
          start: (2,) ids of the first image and the first text among all N pairs.
          inputs: arrays (images, ...) and (texts, ...) in turn, padded to whole tiles.
        """

        def output(x: TileOutput) -> pl.BlockSpec:
            return pl.BlockSpec(x.part, lambda step: x.offset(*self.tile_at(step)))

        def tile_input(axis: int, x: jax.Array) -> pl.BlockSpec:
            part = (self.shape.rows, self.shape.columns)[axis], *x.shape[1:]
            beyond = (0,) * (x.ndim - 1)
            return pl.BlockSpec(part, lambda step: (self.tile_at(step)[axis], *beyond))

        in_specs = [pl.BlockSpec(x.shape, lambda step: (0,)) for x in (numbers, start)]
        in_specs += [tile_input(n % 2, x) for n, x in enumerate(inputs)]
        return pl.pallas_call(
            partial(kernel, self),
            grid=(self.rows * self.columns,),
            in_specs=in_specs,
            out_specs=[output(x) for x in outputs],
            out_shape=[jax.ShapeDtypeStruct(x.size, x.dtype) for x in outputs],
            compiler_params=plgpu.CompilerParams(
                num_warps=self.shape.warps, num_stages=self.shape.stages
            ),
            interpret=self.tiling.kernels == INTERPRET,
        )(numbers, start, *inputs)


class LogitTile:
    """One tile of a grid, inside a kernel.

    Attributes:
      products: (rows, columns) logits without the scale.
      scale: () positive factor of the products.
      row: () id of the first image among the grid's.
      column: () id of the first text among the grid's.
      ids: ids of the same image and text among all N pairs, () each.
    """

    def __init__(
        self,
        grid: LogitGrid,
        scale: jax.Array,
        start: jax.Ref,
        ximg: jax.Ref,
        ytxt: jax.Ref,
    ) -> None:
        """Multiplies images (rows, D) by texts (columns, D), without the scale."""
        self.grid, self.scale = grid, scale
        i, j = grid.tile_at(pl.program_id(0))
        self.row, self.column = i * grid.shape.rows, j * grid.shape.columns
        self.ids = start[0] + self.row, start[1] + self.column
        depth = grid.shape.depth

        def add(k: jax.Array, products: jax.Array) -> jax.Array:
            part = pl.ds(k * depth, depth)
            return products + plgpu.dot(ximg[:, part], ytxt[:, part], trans_b=True)

        zeros = jnp.zeros((grid.shape.rows, grid.shape.columns), jnp.float32)
        self.products = lax.fori_loop(0, ximg.shape[1] // depth, add, zeros)

    @property
    def has_others_only(self) -> jax.Array:
        """Whether the tile has wrong candidates only, (); false if there are groups."""
        shape, (row, column) = self.grid.shape, self.ids
        apart = (row >= column + shape.columns) | (column >= row + shape.rows)
        return apart & (self.grid.tiling.groups == 1)

    @property
    def is_inside(self) -> jax.Array:
        """Whether no image and no text lies beyond the last, ()."""
        grid = self.grid
        rows_fit = self.row + grid.shape.rows <= grid.images
        return rows_fit & (self.column + grid.shape.columns <= grid.texts)

    def relations(self) -> tuple[jax.Array, jax.Array]:
        """Returns masks (rows, columns) of the logits of pairs and of candidates."""
        shape, candidates = self.grid.shape, self.grid.tiling.candidates
        row = self.ids[0] + jnp.arange(shape.rows)
        column = self.ids[1] + jnp.arange(shape.columns)
        own = row[:, None] == column[None]
        candidate = (row // candidates)[:, None] == (column // candidates)[None]
        return own, candidate

    def exp2(self, x: jax.Array) -> jax.Array:
        """Returns 2^x from one instruction."""
        return self._approximate("ex2", jnp.exp2, x)

    def log2(self, x: jax.Array) -> jax.Array:
        """Returns the base-2 logarithm of x, to about 2^-22, from one instruction."""
        return self._approximate("lg2", jnp.log2, x)

    def _approximate(self, name: str, function: Callable, x: jax.Array) -> jax.Array:
        if self.grid.tiling.kernels == INTERPRET:
            return function(x)
        (result,) = plgpu.elementwise_inline_asm(
            f"{name}.approx.ftz.f32 $0, $1;",
            args=[x],
            constraints="=f,f",
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        )
        return result


def statistics_kernel(
    grid: LogitGrid,
    numbers: jax.Ref,
    start: jax.Ref,
    ximg: jax.Ref,
    ytxt: jax.Ref,
    *outputs: jax.Ref,
) -> None:
    """Writes one tile's log-sum-exps and maxima over the logits of wrong candidates.

    All outputs are in base 2: a natural log-sum-exp, or a logit, times log2(e).

    Args:
      grid: grid of tiles.
      numbers: (1,) log2(e) / temperature.
      start: (2,) ids of the first image and the first text among all N pairs.
      ximg: (rows, D) images of the tile.
      ytxt: (columns, D) texts of the tile.
      outputs: log-sum-exp and maximum by image, (1, rows) each; then log-sum-exp and
        maximum by text, (1, columns) each.
    """
    row_lse, row_best, column_lse, column_best = outputs
    tile = LogitTile(grid, numbers[0], start, ximg, ytxt)
    products, scale = tile.products, tile.scale
    row_most, column_most = scale * products.max(1), scale * products.max(0)
    high = jnp.max(row_most)
    low = jnp.minimum(jnp.min(row_most), jnp.min(column_most))
    simple = tile.has_others_only & tile.is_inside & (high - low < SPREAD)

    @pl.when(simple)
    def _() -> None:
        terms = tile.exp2(scale * products - high)
        row_lse[0] = high + tile.log2(terms.sum(1))
        column_lse[0] = high + tile.log2(terms.sum(0))
        row_best[0], column_best[0] = row_most, column_most

    @pl.when(~simple)
    def _() -> None:
        own, candidate = tile.relations()
        row = tile.row + jnp.arange(grid.shape.rows) < grid.images
        column = tile.column + jnp.arange(grid.shape.columns) < grid.texts
        other = candidate & ~own & row[:, None] & column[None]
        masked = jnp.where(other, scale * products, EXCLUDED)
        row_most, column_most = masked.max(1), masked.max(0)
        row_sum = tile.exp2(masked - row_most[:, None]).sum(1)
        row_lse[0] = row_most + tile.log2(row_sum)
        column_sum = tile.exp2(masked - column_most[None]).sum(0)
        column_lse[0] = column_most + tile.log2(column_sum)
        row_best[0], column_best[0] = row_most, column_most


def gradients_kernel(
    grid: LogitGrid,
    numbers: jax.Ref,
    start: jax.Ref,
    ximg: jax.Ref,
    ytxt: jax.Ref,
    row_lse_ref: jax.Ref,
    column_lse_ref: jax.Ref,
    dlogits: jax.Ref,
    *,
    smoothing: float,
) -> None:
    """Writes the gradients of the logits, without the factor 1 / N.

    Args:
      grid: grid of tiles.
      numbers: (3,) log2(e) / temperature, and the weights of the two directions.
      start: (2,) ids of the first image and the first text among all N pairs.
      ximg: (rows, D) images.
      ytxt: (columns, D) texts.
      row_lse_ref: (rows,) log-sum-exps of the images, in base 2.
      column_lse_ref: (columns,) log-sum-exps of the texts, in base 2.
      dlogits: (rows, columns) output.
      smoothing: share of the uniform target.
    """
    tile = LogitTile(grid, numbers[0], start, ximg, ytxt)
    i2t, t2i = numbers[1], numbers[2]
    products, scale = tile.products, tile.scale
    row_lse, column_lse = row_lse_ref[...], column_lse_ref[...]
    high = jnp.maximum(jnp.max(row_lse), jnp.max(column_lse))
    low = jnp.minimum(jnp.min(row_lse), jnp.min(column_lse))
    uniform = smoothing / grid.tiling.candidates
    simple = tile.has_others_only & (high - low < SPREAD)

    # The gradient of a direction's loss by a logit is probability - target.
    @pl.when(simple)
    def _() -> None:
        by_row = i2t * tile.exp2(high - row_lse)
        by_column = t2i * tile.exp2(high - column_lse)
        probability = tile.exp2(scale * products - high)
        probability *= by_row[:, None] + by_column[None]
        dlogits[...] = (probability - (i2t + t2i) * uniform).astype(dlogits.dtype)

    @pl.when(~simple)
    def _() -> None:
        own, candidate = tile.relations()
        target = jnp.where(own, 1.0 - smoothing, 0.0)
        target += jnp.where(candidate, uniform, 0.0)
        masked = jnp.where(candidate, scale * products, EXCLUDED)
        total = i2t * (tile.exp2(masked - row_lse[:, None]) - target)
        total += t2i * (tile.exp2(masked - column_lse[None]) - target)
        dlogits[...] = total.astype(dlogits.dtype)
