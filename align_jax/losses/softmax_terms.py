"""The terms of the contrastive loss and their gradients, from the logits of a device.

They are computed by a walk over tiles, see `tiles`, or by the Pallas kernels of
`contrastive_gpu`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from align_jax.devices.kernel_choice import PLAIN
from align_jax.devices.mesh import BATCH_AXES
from align_jax.losses import contrastive_gpu
from align_jax.losses.logits import (
    Directions,
    Logits,
    LogitStatistics,
    mean_cosines,
)
from align_jax.losses.tiles import (
    EXCLUDED,
    LogitBlock,
    accuracies,
    gather,
    mean_over_pairs,
    own_rows,
    scatter_sum,
    walk,
)


def forward_terms(
    logits: Logits, ytxt: jax.Array, smoothing: float
) -> tuple[dict[str, jax.Array], Directions[jax.Array], jax.Array | tuple[()]]:
    """Computes the loss's two directions from the logits of this device's images.

    Args:
      logits: images of this device (n, D) and all texts (N, D).
      ytxt: (n, D) texts of this device.
      smoothing: label smoothing.

    Returns:
      The metrics of `contrastive_loss`, the log-sum-exps of this device's images and
      texts, (n,) each, and the kept logits (K, n, T), see `walk`; () with Pallas
      kernels.
    """
    ximg, temperature, tiling = logits.ximg, logits.temperature, logits.tiling
    n = len(ximg)
    x, y = ximg.astype(jnp.float32), ytxt.astype(jnp.float32)
    positive = (x / temperature * y).sum(1)  # (n,)
    kept: jax.Array | tuple[()] = ()
    if tiling.kernels == PLAIN:
        found, kept = _walk_forward(logits, positive)
    else:
        found = contrastive_gpu.statistics(logits, positive, contrastive_gpu.STATISTICS)
    column_lse = found.column_lse  # over this device's rows

    shift = lax.pmax(column_lse, BATCH_AXES)  # (N,)
    column_sum = scatter_sum(jnp.exp(column_lse - shift))  # (n,)
    column_lse = jnp.log(column_sum) + shift[own_rows(n)]

    metrics = accuracies(positive, found.best_text, found.best_image, temperature)
    both = Directions(found.row_lse, column_lse)
    means = mean_cosines(logits, ytxt)
    for direction, lse, mean in zip(("i2t_loss", "t2i_loss"), both, means, strict=True):
        terms = lse - (1.0 - smoothing) * positive - smoothing * mean / temperature
        metrics[direction] = mean_over_pairs(terms)
    return metrics, both, kept


def backward_terms(
    logits: Logits,
    lse: Directions[jax.Array],
    weights: Directions[jax.Array],
    smoothing: float,
    kept: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Computes `contrastive_gpu.gradients`, by its kernels or by a walk.

    Args:
      logits: images of this device (n, D) and all texts (N, D).
      lse: log-sum-exps of this device's images and texts, (n,) each.
      weights: weights of the two directions.
      smoothing: label smoothing.
      kept: kept logits, see `forward_terms`.
    """
    lse = Directions(lse.i2t, gather(lse.t2i))  # (n,), (N,)
    if logits.tiling.kernels == PLAIN:
        return _walk_backward(logits, lse, weights, smoothing, kept)
    return contrastive_gpu.gradients(
        logits,
        lse,
        weights,
        smoothing,
        shape=contrastive_gpu.GRADIENTS,
        chunk_bytes=contrastive_gpu.CHUNK_BYTES,
    )


def _walk_forward(
    logits: Logits, positive: jax.Array
) -> tuple[LogitStatistics, jax.Array]:
    """Computes `contrastive_gpu.statistics` by a walk, and kept logits (K, n, T)."""

    # A log-sum-exp may be shifted by any number near its maximum. The shift is the
    # larger of the pair's own logit and the best of the others. The own logit is
    # computed separately, so it may differ by rounding.
    def visit(
        carry: tuple[jax.Array, jax.Array],
        block: LogitBlock,
        column_positive: jax.Array,
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
        row_sum, best_text = carry
        others = block.others()  # (n, T)
        old_shift = jnp.maximum(positive, best_text)
        best_text = jnp.maximum(best_text, others.max(1))
        shift = jnp.maximum(positive, best_text)
        row_sum *= jnp.exp(old_shift - shift)
        row_sum += jnp.exp(block.logits - shift[:, None]).sum(1)
        best_image = others.max(0)  # (T,)
        column_shift = jnp.maximum(column_positive, best_image)
        column_sum = jnp.exp(block.logits - column_shift[None]).sum(0)
        return (row_sum, best_text), (column_shift, column_sum, best_image)

    n = len(logits.ximg)
    start = (jnp.zeros(n), jnp.full(n, EXCLUDED))
    rows, columns, kept = walk(
        logits.tiling,
        logits.ximg / logits.temperature,
        logits.all_texts,
        visit,
        carry=start,
        columns=gather(positive),
    )
    row_sum, best_text = rows
    column_shift, column_sum, best_image = columns
    row_lse = jnp.log(row_sum) + jnp.maximum(positive, best_text)
    column_lse = jnp.log(column_sum) + column_shift
    return LogitStatistics(row_lse, best_text, column_lse, best_image), kept


def _walk_backward(
    logits: Logits,
    lse: Directions[jax.Array],
    weights: Directions[jax.Array],
    smoothing: float,
    kept: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Computes `contrastive_gpu.gradients` by a walk, from kept logits (K, n, T)."""
    ximg, tiling = logits.ximg, logits.tiling

    def visit(
        dimg: jax.Array, block: LogitBlock, column_lse: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # The gradient of a direction's loss by a logit is (probability - target) / N.
        target = (1.0 - smoothing) * block.own.astype(jnp.float32)
        candidate = block.candidate.astype(jnp.float32)
        target += smoothing / tiling.candidates * candidate
        dlogits = weights.i2t * (jnp.exp(block.logits - lse.i2t[:, None]) - target)
        by_column = jnp.exp(block.logits - column_lse[None])
        dlogits += weights.t2i * (by_column - target)  # (n, T)
        dimg += tiling.product(dlogits, block.texts)  # (n, D)
        return dimg, tiling.product(dlogits.T, ximg)  # (T, D)

    start = jnp.zeros(ximg.shape)
    dimg, dtxt, _ = walk(
        tiling,
        ximg / logits.temperature,
        logits.all_texts,
        visit,
        carry=start,
        columns=lse.t2i,
        kept=kept,
    )
    return dimg, dtxt
