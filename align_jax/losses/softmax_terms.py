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
from align_jax.losses.exchange import (
    Columns,
    exchanged,
    own_most,
    scatter_sum,
    visit_pairs,
)
from align_jax.losses.logits import (
    Directions,
    Logits,
    LogitStatistics,
    mean_cosines,
)
from align_jax.losses.tiles import (
    EXCLUDED,
    RING,
    LogitBlock,
    accuracies,
    mean_over_pairs,
    own_rows,
)


def forward_terms(
    logits: Logits, ytxt: jax.Array, smoothing: float
) -> tuple[dict[str, jax.Array], Directions[jax.Array], jax.Array | tuple[()]]:
    """Computes the loss's two directions from the logits of this device's images.

    Args:
      logits: images of this device (n, D), and texts from `exchanged`.
      ytxt: (n, D) texts of this device.
      smoothing: label smoothing.

    Returns:
      The metrics of `contrastive_loss`, the log-sum-exps of this device's images and
      texts, (n,) each, and the kept logits of `visit_pairs`; () with Pallas kernels.
    """
    ximg, temperature, tiling = logits.ximg, logits.temperature, logits.tiling
    x, y = ximg.astype(jnp.float32), ytxt.astype(jnp.float32)
    positive = (x / temperature * y).sum(1)  # (n,)
    kept: jax.Array | tuple[()] = ()
    if tiling.kernels == PLAIN:
        found, kept = _walk_forward(logits, positive)
    else:
        found = contrastive_gpu.statistics(logits, positive, contrastive_gpu.STATISTICS)

    column_lse, best_image = found.column_lse, own_most(found.best_image, tiling)
    if tiling.exchange != RING:  # these are over this device's rows
        shift = lax.pmax(column_lse, BATCH_AXES)  # (N,)
        column_sum = scatter_sum(jnp.exp(column_lse - shift))  # (n,)
        column_lse = jnp.log(column_sum) + shift[own_rows(len(ximg))]

    metrics = accuracies(positive, found.best_text, best_image, temperature)
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
      logits: images of this device (n, D), and texts from `exchanged`.
      lse: log-sum-exps of this device's images and texts, (n,) each.
      weights: weights of the two directions.
      smoothing: label smoothing.
      kept: kept logits, see `forward_terms`.
    """
    if logits.tiling.kernels == PLAIN:
        return _walk_backward(logits, lse, weights, smoothing, kept)
    return contrastive_gpu.gradients(
        logits,
        Directions(lse.i2t, exchanged(lse.t2i, logits.tiling)),
        weights,
        smoothing,
        shape=contrastive_gpu.GRADIENTS,
        chunk_bytes=contrastive_gpu.CHUNK_BYTES,
    )


ColumnSums = tuple[
    jax.Array, jax.Array, jax.Array
]  # shift, sum of exp(z - shift), best


def _join(a: ColumnSums, b: ColumnSums) -> ColumnSums:
    """Joins the sums and best logits of the same columns over different rows."""
    shift = jnp.maximum(a[0], b[0])
    total = a[1] * jnp.exp(a[0] - shift) + b[1] * jnp.exp(b[0] - shift)
    return shift, total, jnp.maximum(a[2], b[2])


def _walk_forward(
    logits: Logits, positive: jax.Array
) -> tuple[LogitStatistics, jax.Array]:
    """Computes `contrastive_gpu.statistics` by a walk, and logits to keep."""

    # A log-sum-exp may be shifted by any number near its maximum. The shift is the
    # larger of the pair's own logit and the best of the others. The own logit is
    # computed separately, so it may differ by rounding.
    def visit(
        carry: tuple[jax.Array, jax.Array],
        block: LogitBlock,
        positive: jax.Array,
        column_positive: jax.Array,
    ) -> tuple[tuple[jax.Array, jax.Array], ColumnSums]:
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

    none, zero = jnp.full(len(positive), EXCLUDED), jnp.zeros(len(positive))
    rows, columns, kept = visit_pairs(
        logits,
        visit,
        carry=(zero, none),
        rows=positive,
        columns=Columns(positive, start=(none, zero, none), join=_join),
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
    """Computes `contrastive_gpu.gradients` by a walk, from kept logits."""
    ximg, tiling = logits.ximg, logits.tiling

    def visit(
        dimg: jax.Array,
        block: LogitBlock,
        rows: tuple[jax.Array, jax.Array],
        column_lse: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        ximg, row_lse = rows
        # The gradient of a direction's loss by a logit is (probability - target) / N.
        target = (1.0 - smoothing) * block.own.astype(jnp.float32)
        candidate = block.candidate.astype(jnp.float32)
        target += smoothing / tiling.candidates * candidate
        dlogits = weights.i2t * (jnp.exp(block.logits - row_lse[:, None]) - target)
        by_column = jnp.exp(block.logits - column_lse[None])
        dlogits += weights.t2i * (by_column - target)  # (n, T)
        dimg += tiling.product(dlogits, block.texts)  # (n, D)
        return dimg, tiling.product(dlogits.T, ximg)  # (T, D)

    zeros = jnp.zeros(ximg.shape)
    dimg, dtxt, _ = visit_pairs(
        logits,
        visit,
        carry=zeros,
        rows=(ximg, lse.i2t),
        columns=Columns(lse.t2i, start=zeros, join=jnp.add),
        kept=kept,
    )
    return dimg, dtxt
