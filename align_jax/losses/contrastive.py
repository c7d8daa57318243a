"""ALIGN's contrastive loss over the global batch (arXiv 2102.05918, section 4.1).

`contrastive_loss` has the formula. Each device computes the loss of its pairs under
`shard_map`, see `tiles`, or with the Pallas kernels of `contrastive_gpu` if
`contrastive_gpu.choose` says so.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

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
    KEPT,
    ROWS,
    WHOLE,
    LogitBlock,
    Tiling,
    accuracies,
    gather,
    make_tiling,
    mean_over_pairs,
    own_rows,
    scatter_sum,
    walk,
)

REDUCTIONS = {"sum": 1.0, "mean": 0.5}


def contrastive_loss(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    temperature: jax.Array,
    mesh: Mesh,
    label_smoothing: float = 0.0,
    reduction: str = "sum",
    negatives: float = 1.0,
    tile: int | None = None,
    precision: str = "highest",
    kernels: str = "auto",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes ALIGN's loss over all pairs of all devices, in memory linear in N.

    With unit vectors x_i (images) and y_j (texts), temperature s, N pairs and logits
    z_ij = x_i . y_j / s (arXiv 2102.05918, section 4.1):

        L_i2t = -1/N sum_i log( exp(z_ii) / sum_j exp(z_ij) )
        L_t2i = -1/N sum_j log( exp(z_jj) / sum_i exp(z_ij) )
        L     = L_i2t + L_t2i

    The sums run over the candidates of i or j: all pairs, unless `negatives` is below
    1. Label smoothing e mixes the one-hot target with the uniform one over these
    candidates. A term is then lse - (1 - e) z_ii - e mean, where lse and mean are the
    log-sum-exp and the mean of the candidates' logits.

    Args:
      image_embeddings: (N, D) unit vectors, split over the mesh by rows.
      text_embeddings: (N, D) unit vectors, split in the same way; row i matches image
        i.
      temperature: () positive divisor of the cosine similarities.
      mesh: mesh of the devices; N is a multiple of their number.
      label_smoothing: e above, in [0, 1).
      reduction: "sum" of the two directions (the paper) or their "mean".
      negatives: share of the batch that a pair is compared with, 1 / a whole number;
        see `make_tiling`.
      tile: number of columns of the logits held at a time; None lets `make_tiling`
        choose.
      precision: precision of the matrix products, a name of `jax.lax.Precision`.
      kernels: "auto" for the kernels of `logit_kernels`, which round embeddings to
        bfloat16, on NVIDIA GPUs at precision "default"; "plain" for XLA; see
        `contrastive_gpu.choose`.

    Returns:
      The loss, (), in nats, and metrics, () each: "i2t_loss", "t2i_loss", and the
      `accuracies` of both directions. Only the loss has a gradient.

    Raises:
      ValueError: reduction, negatives, tile or kernels is invalid, or N does not divide
        over the devices.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; known: {', '.join(REDUCTIONS)}")
    tiling = make_tiling(len(image_embeddings), mesh, negatives, tile, precision)
    kernels = contrastive_gpu.choose(kernels, precision, mesh)
    tiling = dataclasses.replace(tiling, kernels=kernels)
    metrics = _compiled(
        image_embeddings, text_embeddings, temperature, tiling, label_smoothing
    )
    loss = REDUCTIONS[reduction] * (metrics["i2t_loss"] + metrics["t2i_loss"])
    return loss, jax.tree.map(lax.stop_gradient, metrics)


class SoftmaxResiduals(NamedTuple):
    """Arrays of the forward pass for the backward pass, or their PartitionSpecs.

    Attributes:
      ximg: (N, D) images, split by rows.
      ytxt: (N, D) texts, split by rows.
      temperature: () temperature.
      lse: natural log-sum-exps of the rows and of the columns, (N,) each, split.
      kept: logits (K, N, T) of the first tiles, see `walk`; () with Pallas kernels.
    """

    ximg: Any
    ytxt: Any
    temperature: Any
    lse: Directions[Any]
    kept: Any


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _directions(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    tiling: Tiling,
    smoothing: float,
) -> dict[str, jax.Array]:
    """Returns each direction's loss and accuracy, the metrics of `contrastive_loss`."""
    return _directions_forward(ximg, ytxt, temperature, tiling, smoothing)[0]


def _directions_forward(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    tiling: Tiling,
    smoothing: float,
) -> tuple[dict[str, jax.Array], SoftmaxResiduals]:
    share = jax.shard_map(
        partial(_forward_share, tiling=tiling, smoothing=smoothing),
        mesh=tiling.mesh,
        in_specs=(ROWS, ROWS, WHOLE),
        out_specs=(WHOLE, Directions(ROWS, ROWS), KEPT),
        check_vma=tiling.kernels == PLAIN,  # Pallas does not support the check
    )
    metrics, lse, kept = share(ximg, ytxt, temperature)
    return metrics, SoftmaxResiduals(ximg, ytxt, temperature, lse, kept)


def _directions_backward(
    tiling: Tiling,
    smoothing: float,
    residuals: SoftmaxResiduals,
    cotangents: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    share = jax.shard_map(
        partial(_backward_share, tiling=tiling, smoothing=smoothing),
        mesh=tiling.mesh,
        in_specs=(
            SoftmaxResiduals(ROWS, ROWS, WHOLE, Directions(ROWS, ROWS), KEPT),
            WHOLE,
        ),
        out_specs=(ROWS, ROWS, WHOLE),
        check_vma=tiling.kernels == PLAIN,
    )
    weights = Directions(cotangents["i2t_loss"], cotangents["t2i_loss"])
    return share(residuals, weights)


_directions.defvjp(_directions_forward, _directions_backward)
_compiled = jax.jit(_directions, static_argnums=(3, 4))  # for calls outside of a jit


def _forward_share(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    tiling: Tiling,
    smoothing: float,
) -> tuple[dict[str, jax.Array], Directions[jax.Array], jax.Array | tuple[()]]:
    """Returns metrics, this device's log-sum-exps (n,), and the kept logits."""
    if tiling.kernels != PLAIN:
        ximg, ytxt = contrastive_gpu.rounded(ximg), contrastive_gpu.rounded(ytxt)
    logits = Logits(ximg, gather(ytxt), temperature, tiling)
    return forward_terms(logits, ytxt, smoothing)


def forward_terms(
    logits: Logits, ytxt: jax.Array, smoothing: float
) -> tuple[dict[str, jax.Array], Directions[jax.Array], jax.Array | tuple[()]]:
    """Returns the results of `_forward_share`, from gathered texts and own (n, D)."""
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


def _backward_share(
    residuals: SoftmaxResiduals,
    weights: Directions[jax.Array],
    tiling: Tiling,
    smoothing: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of this device's rows and of the temperature.

    They are gradients of weights.i2t * L_i2t + weights.t2i * L_t2i.
    """
    ximg, ytxt, temperature, lse, kept = residuals
    if tiling.kernels != PLAIN:
        ximg, ytxt = contrastive_gpu.rounded(ximg), contrastive_gpu.rounded(ytxt)
    logits = Logits(ximg, gather(ytxt), temperature, tiling)
    dimg, dtxt = backward_terms(logits, lse, weights, smoothing, kept)
    scale = 1.0 / (tiling.pairs * temperature)
    dimg, dtxt = scale * dimg, scale * scatter_sum(dtxt)
    # sum_ij dz_ij z_ij = sum_i x_i . dx_i, and dz_ij / ds = -z_ij / s.
    dtemperature = (
        -lax.psum((ximg.astype(jnp.float32) * dimg).sum(), BATCH_AXES) / temperature
    )
    return dimg, dtxt, dtemperature


def backward_terms(
    logits: Logits,
    lse: Directions[jax.Array],
    weights: Directions[jax.Array],
    smoothing: float,
    kept: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Computes `contrastive_gpu.gradients`, by its kernels or by a walk.

    Here `lse` has the log-sum-exps of this device's images and texts, (n,) each.
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
