"""The contrastive loss on NVIDIA GPUs: logits that never leave a multiprocessor.

Two kernels in Pallas Triton. Each is a product of bfloat16 embeddings, tile by tile,
that is finished where its float32 logits lie:

* `statistics` leaves of a tile the log-sum-exp and the maximum of every row and column;
* `gradients` leaves of a chunk of columns the gradient by the logits, in bfloat16, and
  two plain products turn that into the gradients by images and by texts.

Inside the kernels logits and log-sum-exps are in base 2, as the hardware's exponential
is: z_ij = x_i . y_j log2(e) / temperature. Where all maxima of a tile (or log-sum-exps)
are within `SPREAD` of each other, one exponential a logit serves both directions.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import Mesh

from align_jax.loss_tiles import EXCLUDED, Tiling, own_rows

KERNELS = ("auto", "plain", "triton", "interpret")

LOG2E = math.log2(math.e)
# An exponential ends at 2^-126, which beside a sum of at least 2^-SPREAD is nothing.
SPREAD = 80.0
BAND = 8  # rows of tiles that are walked together: their operands stay in the L2 cache
CHUNK_BYTES = 2**30  # of the gradient by the logits that is held at a time


@dataclasses.dataclass(frozen=True)
class Shape:
    """How a kernel is cut; the first three are powers of two.

    Attributes:
      rows: images of a tile.
      columns: texts of a tile.
      depth: numbers of an embedding that are multiplied at a time.
      warps: of 32 threads, that share a tile.
      stages: parts of the embeddings in shared memory, one in use, the others loading.
    """

    rows: int = 256
    columns: int = 128
    depth: int = 64
    warps: int = 8
    stages: int = 3


STATISTICS, GRADIENTS = Shape(), Shape()


def choose(kernels: str, precision: str, mesh: Mesh) -> str:
    """What computes the loss: "plain", "triton" or, to test that, "interpret".

    Args:
      kernels: one of `KERNELS`; "auto" is "triton" where bfloat16 products are allowed
        and the devices are NVIDIA's with compute capability 8.0 or above.
      precision: of the matrix products, a name of `jax.lax.Precision`.
      mesh: the devices.

    Raises:
      ValueError: kernels is none of the above.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels is {kernels!r}; known: {', '.join(KERNELS)}")
    if kernels != "auto":
        return kernels
    device = mesh.devices.flat[0]
    nvidia = "NVIDIA" in device.device_kind
    fits = precision == "default" and nvidia and float(device.compute_capability) >= 8
    return "triton" if fits else "plain"


def rounded(x: jax.Array) -> jax.Array:
    """Embeddings in bfloat16; a cast alone the compiler may take back."""
    x = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return x.astype(jnp.bfloat16)


def statistics(
    ximg: jax.Array,
    all_texts: jax.Array,
    positive: jax.Array,
    temperature: jax.Array,
    tiling: Tiling,
    shape: Shape,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Log-sum-exps and best wrong candidates; called under `shard_map`.

    Args:
      ximg: (n, D) bfloat16, this device's images.
      all_texts: (N, D) bfloat16.
      positive: (n,) logits of this device's pairs.
      temperature: () that the logits are divided by.
      tiling: N, the groups, and whether the kernel is interpreted.
      shape: of the kernel.

    Returns:
      An image's log-sum-exp and best logit with another pair's text, (n,) each; a
      text's log-sum-exp over this device's images and best logit with another pair's
      image of this device, (N,) each.
    """
    n, pairs, own = len(ximg), len(all_texts), own_rows(len(ximg))
    grid = Grid(n, pairs, shape, tiling)
    rows = Part((grid.columns, grid.height), (1, shape.rows), lambda i, j: (j, i))
    columns = Part((grid.rows, grid.width), (1, shape.columns), lambda i, j: (i, j))
    row_lse, row_best, column_lse, column_best = grid.call(
        _statistics_kernel,
        [rows, rows, columns, columns],
        jnp.stack([LOG2E / temperature]),
        jnp.stack([own[0], 0]),
        grid.pad(ximg, all_texts),
    )
    # The kernel leaves the pairs' own logits out.
    row_lse = jnp.logaddexp(_join(row_lse)[:n], positive)
    column_lse = _join(column_lse)[:pairs]
    column_lse = column_lse.at[own].set(jnp.logaddexp(column_lse[own], positive))
    best_text, best_image = row_best.max(0)[:n], column_best.max(0)[:pairs]
    return row_lse, best_text / LOG2E, column_lse, best_image / LOG2E


def _join(lse: jax.Array) -> jax.Array:
    """Of log-sum-exps of parts, (parts, n) in base 2, those of the whole, (n,)."""
    most = lse.max(0)
    return (most + jnp.log2(jnp.exp2(lse - most).sum(0))) / LOG2E


def gradients(
    ximg: jax.Array,
    all_texts: jax.Array,
    temperature: jax.Array,
    lse: tuple[jax.Array, jax.Array],
    weights: tuple[jax.Array, jax.Array],
    tiling: Tiling,
    smoothing: float,
    shape: Shape,
    chunk_bytes: int,
) -> tuple[jax.Array, jax.Array]:
    """Gradients by images and texts, but for 1 / (N temperature).

    Args:
      ximg: (n, D) bfloat16, this device's images.
      all_texts: (N, D) bfloat16.
      temperature: () that the logits are divided by.
      lse: (n,) of this device's images and (N,) of all texts.
      weights: (), (), of the directions image to text and text to image.
      tiling: N, the groups, and whether the kernel is interpreted.
      smoothing: share of the uniform target.
      shape: of the kernel.
      chunk_bytes: of the gradient by the logits that is held at a time.

    Returns:
      (n, D), and this device's part of the sum (N, D), float32.
    """
    (n, width), pairs = ximg.shape, len(all_texts)
    chunk = _chunk(n, pairs, shape.columns, chunk_bytes)  # T
    grid = Grid(n, chunk, shape, tiling)
    beyond = -pairs % chunk
    # Images and texts beyond the last are zeros, and so is what they add.
    ximg, all_texts = grid.pad(ximg, jnp.pad(all_texts, ((0, beyond), (0, 0))))
    row_lse = jnp.pad(LOG2E * lse[0], (0, len(ximg) - n), mode="edge")
    column_lse = jnp.pad(LOG2E * lse[1], (0, beyond), mode="edge")
    numbers = jnp.stack([LOG2E / temperature, *weights])
    first = own_rows(n)[0]
    whole = Part(
        (grid.height, chunk),
        (shape.rows, shape.columns),
        lambda i, j: (i, j),
        "bfloat16",
    )

    def visit(dimg, part):
        start, texts, column_lse = part
        (dlogits,) = grid.call(
            partial(_gradients_kernel, smoothing=smoothing),
            [whole],
            numbers,
            jnp.stack([first, start]),
            (ximg, texts, row_lse, column_lse),
        )
        dimg += jnp.matmul(dlogits, texts, preferred_element_type=jnp.float32)
        return dimg, jnp.matmul(dlogits.T, ximg, preferred_element_type=jnp.float32)

    parts = (
        jnp.arange(0, len(all_texts), chunk),
        all_texts.reshape(-1, chunk, all_texts.shape[1]),
        column_lse.reshape(-1, chunk),
    )
    dimg, dtxt = lax.scan(visit, jnp.zeros(ximg.shape), parts)
    dtxt = dtxt.reshape(all_texts.shape)
    return dimg[:n, :width], dtxt[:pairs, :width]


def _chunk(n: int, pairs: int, unit: int, chunk_bytes: int) -> int:
    """Columns of a chunk of bfloat16: as many in each, in whole tiles."""
    most = max(chunk_bytes // (2 * n * unit) * unit, unit)
    chunks = -(-pairs // most)
    return -(-pairs // (chunks * unit)) * unit


@dataclasses.dataclass(frozen=True)
class Part:
    """An array of which every tile writes a part.

    Attributes:
      size: of the array.
      part: size of a part.
      place: row and column of a tile to the part's place, counted in parts.
      dtype: of the numbers.
    """

    size: tuple[int, int]
    part: tuple[int, int]
    place: Callable
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tiles of n images by T texts.

    Attributes:
      images: n.
      texts: T.
      shape: of a tile.
      tiling: N, the groups, and whether kernels are interpreted.
    """

    images: int
    texts: int
    shape: Shape
    tiling: Tiling

    @property
    def rows(self) -> int:
        """Of tiles."""
        return -(-self.images // self.shape.rows)

    @property
    def columns(self) -> int:
        """Of tiles."""
        return -(-self.texts // self.shape.columns)

    @property
    def height(self) -> int:
        """Images, with zeros up to whole tiles."""
        return self.rows * self.shape.rows

    @property
    def width(self) -> int:
        """Texts, with zeros up to whole tiles."""
        return self.columns * self.shape.columns

    def pad(self, ximg: jax.Array, ytxt: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images (n, D) and texts (any number, D) with zeros up to whole tiles."""
        depth = (0, -ximg.shape[1] % self.shape.depth)
        ximg = jnp.pad(ximg, ((0, self.height - len(ximg)), depth))
        return ximg, jnp.pad(ytxt, ((0, -len(ytxt) % self.shape.columns), depth))

    def place(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Row and column of a step's tile: a band after the other, column by column."""
        band = lax.div(step, BAND * self.columns)
        within = step - band * (BAND * self.columns)
        height = jnp.minimum(self.rows - band * BAND, BAND)
        column = lax.div(within, height)
        return band * BAND + within - column * height, column

    def call(
        self,
        kernel: Callable,
        outputs: Sequence[Part],
        numbers: jax.Array,
        start: jax.Array,
        inputs: Sequence[jax.Array],
    ) -> Sequence[jax.Array]:
        """Runs a kernel on every tile.

        Args:
          kernel: of this grid, numbers, start, and the tile's inputs and outputs.
          outputs: what it writes.
          numbers: the same for all tiles.
          start: (2,) ids of the first image and the first text among all N pairs.
          inputs: by turns an array by images and an array by texts, in whole tiles.
        """

        def block(part, place):
            return pl.BlockSpec(part, lambda step: place(*self.place(step)))

        in_specs = [pl.BlockSpec(x.shape, lambda step: (0,)) for x in (numbers, start)]
        for axis, x in zip((0, 1) * len(inputs), inputs, strict=False):
            part = (self.shape.rows, self.shape.columns)[axis], *x.shape[1:]
            beyond = (0,) * (x.ndim - 1)
            in_specs.append(block(part, lambda *ij, a=axis, b=beyond: (ij[a], *b)))
        return pl.pallas_call(
            partial(kernel, self),
            grid=(self.rows * self.columns,),
            in_specs=in_specs,
            out_specs=[block(x.part, x.place) for x in outputs],
            out_shape=[jax.ShapeDtypeStruct(x.size, x.dtype) for x in outputs],
            compiler_params=plgpu.CompilerParams(
                num_warps=self.shape.warps, num_stages=self.shape.stages
            ),
            interpret=self.tiling.kernels == "interpret",
        )(numbers, start, *inputs)


class Tile:
    """One tile of a grid, inside a kernel.

    Attributes:
      logits: (rows, columns) in base 2.
      row: () id of the first image among the grid's.
      column: () id of the first text among the grid's.
      ids: (), () the same two among all N pairs.
    """

    def __init__(self, grid: Grid, scale: jax.Array, start: Any, ximg: Any, ytxt: Any):
        """Multiplies images (rows, D) and texts (columns, D)."""
        self.grid = grid
        i, j = grid.place(pl.program_id(0))
        self.row, self.column = i * grid.shape.rows, j * grid.shape.columns
        self.ids = start[0] + self.row, start[1] + self.column
        depth = grid.shape.depth

        def add(k, logits):
            part = pl.ds(k * depth, depth)
            return logits + plgpu.dot(ximg[:, part], ytxt[:, part], trans_b=True)

        logits = jnp.zeros((grid.shape.rows, grid.shape.columns), jnp.float32)
        self.logits = scale * lax.fori_loop(0, ximg.shape[1] // depth, add, logits)

    @property
    def has_others_only(self) -> jax.Array:
        """Whether all texts are candidates of all images and no two are a pair, ()."""
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
        """Who is a pair, and who is a candidate; (rows, columns) each."""
        shape, candidates = self.grid.shape, self.grid.tiling.candidates
        row = self.ids[0] + jnp.arange(shape.rows)
        column = self.ids[1] + jnp.arange(shape.columns)
        own = row[:, None] == column[None]
        candidate = (row // candidates)[:, None] == (column // candidates)[None]
        return own, candidate

    def exp2(self, x: jax.Array) -> jax.Array:
        """2^x in one instruction."""
        if self.grid.tiling.kernels == "interpret":
            return jnp.exp2(x)
        (power,) = plgpu.elementwise_inline_asm(
            "ex2.approx.ftz.f32 $0, $1;",
            args=[x],
            constraints="=f,f",
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        )
        return power


def _statistics_kernel(grid, numbers, start, ximg, ytxt, *outputs):
    row_lse, row_best, column_lse, column_best = outputs
    tile = Tile(grid, numbers[0], start, ximg, ytxt)
    logits = tile.logits
    row_most, column_most = logits.max(1), logits.max(0)
    high = jnp.max(row_most)
    low = jnp.minimum(jnp.min(row_most), jnp.min(column_most))
    simple = tile.has_others_only & tile.is_inside & (high - low < SPREAD)

    @pl.when(simple)
    def _():
        terms = tile.exp2(logits - high)
        row_lse[0] = high + jnp.log2(terms.sum(1))
        column_lse[0] = high + jnp.log2(terms.sum(0))
        row_best[0], column_best[0] = row_most, column_most

    @pl.when(~simple)
    def _():
        own, candidate = tile.relations()
        row = tile.row + jnp.arange(grid.shape.rows) < grid.images
        column = tile.column + jnp.arange(grid.shape.columns) < grid.texts
        other = candidate & ~own & row[:, None] & column[None]
        masked = jnp.where(other, logits, EXCLUDED)
        row_most, column_most = masked.max(1), masked.max(0)
        row_sum = tile.exp2(masked - row_most[:, None]).sum(1)
        row_lse[0] = row_most + jnp.log2(row_sum)
        column_sum = tile.exp2(masked - column_most[None]).sum(0)
        column_lse[0] = column_most + jnp.log2(column_sum)
        row_best[0], column_best[0] = row_most, column_most


def _gradients_kernel(
    grid, numbers, start, ximg, ytxt, row_lse, column_lse, dlogits, smoothing
):
    tile = Tile(grid, numbers[0], start, ximg, ytxt)
    i2t, t2i, logits = numbers[1], numbers[2], tile.logits
    row_lse, column_lse = row_lse[...], column_lse[...]
    high = jnp.maximum(jnp.max(row_lse), jnp.max(column_lse))
    low = jnp.minimum(jnp.min(row_lse), jnp.min(column_lse))
    uniform = smoothing / grid.tiling.candidates
    simple = tile.has_others_only & (high - low < SPREAD)

    # A direction's gradient by a logit is probability - target.
    @pl.when(simple)
    def _():
        by_row = i2t * tile.exp2(high - row_lse)
        by_column = t2i * tile.exp2(high - column_lse)
        probability = tile.exp2(logits - high) * (by_row[:, None] + by_column[None])
        dlogits[...] = (probability - (i2t + t2i) * uniform).astype(dlogits.dtype)

    @pl.when(~simple)
    def _():
        own, candidate = tile.relations()
        target = jnp.where(own, 1.0 - smoothing, 0.0)
        target += jnp.where(candidate, uniform, 0.0)
        masked = jnp.where(candidate, logits, EXCLUDED)
        total = i2t * (tile.exp2(masked - row_lse[:, None]) - target)
        total += t2i * (tile.exp2(masked - column_lse[None]) - target)
        dlogits[...] = total.astype(dlogits.dtype)
