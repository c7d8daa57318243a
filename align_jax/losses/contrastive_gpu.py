"""The contrastive loss on NVIDIA GPUs, computed by the kernels of `logit_kernels`.

The logits are never stored; their gradient is held one chunk of columns at a time, in
bfloat16. Embeddings are rounded to bfloat16, sums are float32. `statistics` and
`gradients` are called under `shard_map`. Log-sum-exps are natural, unless base 2 is
mentioned.
"""

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
from align_jax.losses.logit_kernels import (
    LOG2E,
    LogitGrid,
    TileOutput,
    TileShape,
    gradients_kernel,
    statistics_kernel,
)
from align_jax.losses.logits import Directions, Logits, LogitStatistics
from align_jax.losses.tiles import own_rows

KERNELS = (*CHOICES, TRITON, INTERPRET)

CHUNK_BYTES = 2**29  # size of the logits' gradient that is held at a time

STATISTICS, GRADIENTS = TileShape(), TileShape()


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
    n, pairs = len(logits.ximg), len(logits.all_texts)
    own = own_rows(n)
    grid = LogitGrid(n, pairs, shape, logits.tiling)
    rows = TileOutput((grid.columns, grid.height), (1, shape.rows), lambda i, j: (j, i))
    columns = TileOutput(
        (grid.rows, grid.width), (1, shape.columns), lambda i, j: (i, j)
    )
    row_lse, row_best, column_lse, column_best = grid.call(
        statistics_kernel,
        [rows, rows, columns, columns],
        jnp.stack([LOG2E / logits.temperature]),
        jnp.stack([own[0], 0]),
        grid.pad(logits.ximg, logits.all_texts),
    )
    # The kernel leaves out the pairs' own logits.
    row_lse = jnp.logaddexp(_join(row_lse)[:n], positive)
    column_lse = _join(column_lse)[:pairs]
    column_lse = column_lse.at[own].set(jnp.logaddexp(column_lse[own], positive))
    best_text, best_image = row_best.max(0)[:n], column_best.max(0)[:pairs]
    return LogitStatistics(row_lse, best_text / LOG2E, column_lse, best_image / LOG2E)


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
      lse: log-sum-exps of this device's images, (n,), and of all texts, (N,).
      weights: weights of the two directions, () each.
      smoothing: share of the uniform target.
      shape: size of the kernel's tiles.
      chunk_bytes: size of the logits' gradient that is held at a time.

    Returns:
      (n, D), and this device's part of the sum (N, D), float32.
    """
    (n, width), pairs = logits.ximg.shape, len(logits.all_texts)
    chunk = _chunk(n, pairs, shape.columns, chunk_bytes)
    grid = LogitGrid(n, chunk, shape, logits.tiling)
    beyond = -pairs % grid.texts
    # Images and texts beyond the last are zeros, so they add zeros.
    ximg, all_texts = grid.pad(
        logits.ximg, jnp.pad(logits.all_texts, ((0, beyond), (0, 0)))
    )
    row_lse = jnp.pad(lse.i2t, (0, len(ximg) - n), mode="edge")
    column_lse = jnp.pad(lse.t2i, (0, beyond), mode="edge")
    numbers = jnp.stack([LOG2E / logits.temperature, weights.i2t, weights.t2i])
    first = own_rows(n)[0]

    def visit(
        dimg: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        start, texts, column_lse = part
        ids = jnp.stack([first, start])
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
