"""The contrastive loss on NVIDIA GPUs, computed by the kernels of `logit_kernels`.

The logits are never stored; their gradient is held one chunk of columns at a time, in
bfloat16. Embeddings are rounded to bfloat16, sums are float32. `statistics` and
`gradients` are called under `shard_map`. Log-sum-exps are natural, unless base 2 is
mentioned.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from align_jax.devices.kernel_choice import (
    CHOICES,
    INTERPRET,
    PLAIN,
    TRITON,
    choose_kernels,
)
from align_jax.losses.chosen_rows import largest_divisor
from align_jax.losses.logit_kernels import (
    LOG2E,
    LogitGrid,
    TileOutput,
    TileShape,
    gradients_kernel,
    statistics_kernel,
)
from align_jax.losses.logits import Directions, Logits, LogitStatistics
from align_jax.losses.ring import Part, ring
from align_jax.losses.tiles import EXCLUDED, RING, Tiling, own_rows

KERNELS = (*CHOICES, TRITON, INTERPRET)

CHUNK_BYTES = 2**29  # size of the logits' gradient that is held at a time
STATISTICS_BYTES = 2**29  # size of the tiles' statistics that are held at a time
RING_BLOCK = 2**14  # rows and columns of a block in the ring form

STATISTICS, GRADIENTS = TileShape(), TileShape()
Parts = tuple[jax.Array, jax.Array]  # natural log-sum-exps and best logits


def choose(kernels: str, precision: str, mesh: Mesh) -> str:
    """Returns how to compute the loss: "plain", "triton" or, for tests, "interpret".

    Args:
      kernels: one of `KERNELS`. "auto" becomes "triton" if `precision` is "default" and
        `choose_kernels` chooses Triton for the devices, else "plain".
      precision: precision of the matrix products, a name of `jax.lax.Precision`.
      mesh: mesh of the devices.

    Raises:
      ValueError: kernels is not one of `KERNELS`.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels is {kernels!r}; known: {', '.join(KERNELS)}")
    if kernels != "auto":
        return kernels
    return choose_kernels(kernels, mesh).kind if precision == "default" else PLAIN


def rounded(x: jax.Array) -> jax.Array:
    """Rounds embeddings to bfloat16; the compiler might undo a cast alone."""
    x = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return x.astype(jnp.bfloat16)


def statistics(
    logits: Logits, positive: jax.Array, shape: TileShape
) -> LogitStatistics:
    """Returns log-sum-exps over all candidates, and the best logits of wrong ones.

    Args:
      logits: logits of bfloat16 embeddings.
      positive: (n,) logits of this device's pairs.
      shape: size of the kernel's tiles.
    """
    ring_form = logits.tiling.exchange == RING
    found = (_ring_statistics if ring_form else _block_statistics)(logits, shape)
    # The kernel leaves out the pairs' own logits.
    row_lse = jnp.logaddexp(found.row_lse, positive)
    column_lse = found.column_lse
    if ring_form:
        column_lse = jnp.logaddexp(column_lse, positive)
    else:
        own = own_rows(len(logits.ximg))
        column_lse = column_lse.at[own].set(jnp.logaddexp(column_lse[own], positive))
    return found._replace(row_lse=row_lse, column_lse=column_lse)


def _block_statistics(logits: Logits, shape: TileShape) -> LogitStatistics:
    """Returns `_wrong_statistics` of this device's images and all texts.

    They are computed by blocks of texts, because the kernel's numbers for each image
    and each tile of all texts would take O(N^2) memory.
    """
    n, texts = len(logits.ximg), len(logits.texts)
    first, size = own_rows(n)[0], _block_texts(n, texts, shape)
    blocks = texts // size

    def visit(carry: Parts, part: tuple[jax.Array, jax.Array]) -> tuple[Parts, Parts]:
        offset, block = part
        block_logits = Logits(logits.ximg, block, logits.temperature, logits.tiling)
        start = jnp.stack([first, offset])
        by_image, by_text = _wrong_statistics(block_logits, shape, start)
        return _join_parts(carry, by_image), by_text

    none = jnp.full(n, EXCLUDED)
    whole = logits.texts[: blocks * size].reshape(blocks, size, -1)
    parts = (size * jnp.arange(blocks), whole)
    by_image, by_text = lax.scan(visit, (none, none), parts)
    by_text = jax.tree.map(lambda x: x.reshape(-1), by_text)
    if rest := texts % size:
        part = (jnp.asarray(texts - rest), logits.texts[-rest:])
        by_image, last = visit(by_image, part)
        by_text = jax.tree.map(lambda *x: jnp.concatenate(x), by_text, last)
    return LogitStatistics(*by_image, *by_text)


def _block_texts(n: int, texts: int, shape: TileShape) -> int:
    """Returns the number of texts of a block of `_block_statistics`."""
    # Log-sum-exps and best logits of each image and text by tile, float32.
    text_bytes = 8 * n * (1 / shape.columns + 1 / shape.rows)
    most = int(STATISTICS_BYTES / text_bytes) // shape.columns * shape.columns
    return min(texts, max(most, shape.columns))


def _wrong_statistics(
    logits: Logits, shape: TileShape, start: jax.Array
) -> tuple[Parts, Parts]:
    """Returns log-sum-exps and best logits, both over wrong candidates.

    Args:
      logits: logits of bfloat16 embeddings.
      shape: size of the kernel's tiles.
      start: (2,) ids of the first image and the first text among all N pairs.

    Returns:
      Those of the images, (n,) each, and those of the texts, (T,) each.
    """
    n, texts = len(logits.ximg), len(logits.texts)
    grid = LogitGrid(n, texts, shape, logits.tiling)
    rows = TileOutput((grid.columns, grid.height), (1, shape.rows), lambda i, j: (j, i))
    columns = TileOutput(
        (grid.rows, grid.width), (1, shape.columns), lambda i, j: (i, j)
    )
    row_lse, row_best, column_lse, column_best = grid.call(
        statistics_kernel,
        [rows, rows, columns, columns],
        jnp.stack([LOG2E / logits.temperature]),
        start,
        grid.pad(logits.ximg, logits.texts),
    )
    by_image = _join(row_lse)[:n], row_best.max(0)[:n] / LOG2E
    return by_image, (_join(column_lse)[:texts], column_best.max(0)[:texts] / LOG2E)


def _ring_statistics(logits: Logits, shape: TileShape) -> LogitStatistics:
    """Returns `_wrong_statistics` of this device's pairs over all devices."""
    tiling = _ring_tiling(logits.tiling)

    def compute(
        carry: Parts, rows: Part, columns: Part, _: None
    ) -> tuple[Parts, Parts, None]:
        block = Logits(rows.arrays, columns.arrays, logits.temperature, tiling)
        start = jnp.stack([rows.ids[0], columns.ids[0]])
        by_image, by_text = _wrong_statistics(block, shape, start)
        return _join_parts(carry, by_image), by_text, None

    none = jnp.full(len(logits.ximg), EXCLUDED)
    by_image, by_text, _ = ring(
        tiling,
        compute,
        rows=logits.ximg,
        columns=logits.texts,
        carry=(none, none),
        start=(none, none),
        join=_join_parts,
    )
    return LogitStatistics(*by_image, *by_text)


def _join_parts(a: Parts, b: Parts) -> Parts:
    return jnp.logaddexp(a[0], b[0]), jnp.maximum(a[1], b[1])


def _ring_tiling(tiling: Tiling) -> Tiling:
    """Returns the blocks of kernels in the ring form, which have no padding.

    They have at most `RING_BLOCK` rows and columns, unless that would make them small.
    """
    n = tiling.own_pairs
    size = largest_divisor(n, RING_BLOCK)
    size = n if 8 * size < RING_BLOCK else size
    return dataclasses.replace(tiling, rows=size, tile=size, kept=0, kept_steps=0)


def _join(lse: jax.Array) -> jax.Array:
    """Joins base-2 log-sum-exps of parts, (parts, n), to natural ones of all, (n,)."""
    most = lse.max(0)
    return (most + jnp.log2(jnp.exp2(lse - most[None]).sum(0))) / LOG2E


def gradients(
    logits: Logits,
    lse: Directions[jax.Array],
    weights: Directions[jax.Array],
    smoothing: float,
    *,
    shape: TileShape,
    chunk_bytes: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of image and text embeddings.

    They lack the factor 1 / (N temperature).

    Args:
      logits: logits of bfloat16 embeddings.
      lse: log-sum-exps of this device's images, (n,), and of all texts, (N,); in the
        ring form, of this device's texts, (n,).
      weights: weights of the two directions, () each.
      smoothing: share of the uniform target.
      shape: size of the kernel's tiles.
      chunk_bytes: size of the logits' gradient that is held at a time.

    Returns:
      (n, D), and this device's part of the sum (N, D), float32; in the ring form, the
      sum for this device's texts, (n, D).
    """
    work = partial(
        _block_gradients,
        weights=weights,
        smoothing=smoothing,
        shape=shape,
        chunk_bytes=chunk_bytes,
    )
    if logits.tiling.exchange != RING:
        first = own_rows(len(logits.ximg))[0]
        return work(logits, lse, start=jnp.stack([first, 0]))
    tiling = _ring_tiling(logits.tiling)

    def compute(
        carry: jax.Array, rows: Part, columns: Part, _: None
    ) -> tuple[jax.Array, jax.Array, None]:
        (ximg, row_lse), (texts, column_lse) = rows.arrays, columns.arrays
        block = Logits(ximg, texts, logits.temperature, tiling)
        start = jnp.stack([rows.ids[0], columns.ids[0]])
        dimg, dtxt = work(block, Directions(row_lse, column_lse), start=start)
        return carry + dimg, dtxt, None

    zeros = jnp.zeros(logits.ximg.shape)
    return ring(
        tiling,
        compute,
        rows=(logits.ximg, lse.i2t),
        columns=(logits.texts, lse.t2i),
        carry=zeros,
        start=zeros,
        join=jnp.add,
    )[:2]


def _block_gradients(
    logits: Logits,
    lse: Directions[jax.Array],
    weights: Directions[jax.Array],
    smoothing: float,
    shape: TileShape,
    chunk_bytes: int,
    start: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of n images and T texts by their logits, see `gradients`.

    `start`, (2,), has the ids of the first image and the first text.
    """
    (n, width), pairs = logits.ximg.shape, len(logits.texts)
    chunk = _chunk(n, pairs, shape.columns, chunk_bytes)
    grid = LogitGrid(n, chunk, shape, logits.tiling)
    beyond = -pairs % grid.texts
    # Images and texts beyond the last are zeros, so they add zeros.
    ximg, all_texts = grid.pad(
        logits.ximg, jnp.pad(logits.texts, ((0, beyond), (0, 0)))
    )
    row_lse = jnp.pad(lse.i2t, (0, len(ximg) - n), mode="edge")
    column_lse = jnp.pad(lse.t2i, (0, beyond), mode="edge")
    numbers = jnp.stack([LOG2E / logits.temperature, weights.i2t, weights.t2i])

    def visit(
        dimg: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        offset, texts, column_lse = part
        ids = jnp.stack([start[0], start[1] + offset])
        inputs = (ximg, texts, row_lse, column_lse)
        dlogits = logit_gradients(grid, numbers, ids, inputs, smoothing)
        dimg += jnp.matmul(dlogits, texts, preferred_element_type=jnp.float32)
        return dimg, jnp.matmul(dlogits.T, ximg, preferred_element_type=jnp.float32)

    parts = (
        jnp.arange(0, len(all_texts), grid.texts),
        all_texts.reshape(-1, grid.texts, all_texts.shape[1]),
        column_lse.reshape(-1, grid.texts),
    )
    dimg, dtxt = lax.scan(visit, jnp.zeros(ximg.shape), parts)
    dtxt = dtxt.reshape(all_texts.shape)
    return dimg[:n, :width], dtxt[:pairs, :width]


def logit_gradients(
    grid: LogitGrid,
    numbers: jax.Array,
    start: jax.Array,
    inputs: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    smoothing: float,
) -> jax.Array:
    """Returns the logits' gradient (n, T), bfloat16, without the factor 1 / N.

    Both n and T are multiples of a tile's size.

    Args:
      grid: grid of tiles.
      numbers: (3,) log2(e) / temperature, and the weights of the two directions.
      start: (2,) ids of the first image and the first text among all N pairs.
      inputs: bfloat16 embeddings of images (n, D) and of texts (T, D), and their
        natural log-sum-exps, (n,) and (T,).
      smoothing: share of the uniform target.
    """
    shape = grid.shape
    tile = (shape.rows, shape.columns)
    size = (grid.height, grid.width)
    whole = TileOutput(size, tile, lambda i, j: (i, j), "bfloat16")
    kernel = partial(gradients_kernel, smoothing=smoothing)
    ximg, texts, row_lse, column_lse = inputs
    inputs = (ximg, texts, LOG2E * row_lse, LOG2E * column_lse)
    return grid.call(kernel, [whole], numbers, start, inputs)[0]


def _chunk(n: int, pairs: int, unit: int, chunk_bytes: int) -> int:
    """Returns the number of columns of the logits' gradient per chunk.

    All chunks have this number of columns, a multiple of `unit`, so the last one may
    extend beyond the `pairs` columns. A bfloat16 chunk of n rows has at most
    `chunk_bytes`, unless `unit` columns need more.
    """
    most = max(chunk_bytes // (2 * n * unit) * unit, unit)
    chunks = -(-pairs // most)
    return -(-pairs // (chunks * unit)) * unit
