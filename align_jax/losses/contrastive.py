"""ALIGN's contrastive loss over the global batch (arXiv 2102.05918, section 4.1).

With unit vectors x_i (images) and y_j (texts), temperature s, N pairs and logits
z_ij = x_i . y_j / s:

    L_i2t = -1/N sum_i log( exp(z_ii) / sum_j exp(z_ij) )
    L_t2i = -1/N sum_j log( exp(z_jj) / sum_i exp(z_ij) )
    L     = L_i2t + L_t2i

Label smoothing e mixes the one-hot target with the uniform one over the candidates:
a term is lse - (1 - e) z_ii - e mean, with log-sum-exp and mean of its row or column.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from align_jax.devices.kernel_choice import PLAIN
from align_jax.devices.mesh import BATCH_AXES
from align_jax.losses import contrastive_gpu
from align_jax.losses.tiles import (
    EXCLUDED,
    KEPT,
    ROWS,
    WHOLE,
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
    """Computes the loss over all pairs of all devices in memory linear in N.

    Args:
      image_embeddings: (N, D) of unit length, split over the mesh by rows.
      text_embeddings: (N, D) of unit length, likewise; row i matches image i.
      temperature: () positive divisor of the cosine similarities.
      mesh: the devices; N is a multiple of their number.
      label_smoothing: e above, in [0, 1).
      reduction: "sum" of the two directions (the paper) or their "mean".
      negatives: share of the batch that a pair is compared with, 1 / a whole number;
        see `make_tiling`.
      tile: columns of the logits held at a time; None chooses, see `make_tiling`.
      precision: of the matrix products, a name of `jax.lax.Precision`.
      kernels: "auto" is those of `loss_kernels` on NVIDIA GPUs at precision "default",
        which round the embeddings to bfloat16; "plain" never.

    Returns:
      The loss, (), and metrics, (): each direction's loss and in-batch accuracy. Only
      the loss has a gradient.

    Raises:
      ValueError: negatives, reduction or kernels is none of the above.
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


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _directions(ximg, ytxt, temperature, tiling, smoothing):
    """Each direction's loss and accuracy."""
    return _directions_forward(ximg, ytxt, temperature, tiling, smoothing)[0]


def _directions_forward(ximg, ytxt, temperature, tiling, smoothing):
    share = jax.shard_map(
        partial(_forward_share, tiling=tiling, smoothing=smoothing),
        mesh=tiling.mesh,
        in_specs=(ROWS, ROWS, WHOLE),
        out_specs=(WHOLE, (ROWS, ROWS, KEPT)),
        check_vma=tiling.kernels == PLAIN,  # which Pallas cannot follow
    )
    metrics, found = share(ximg, ytxt, temperature)
    return metrics, (ximg, ytxt, temperature, found)


def _directions_backward(tiling, smoothing, residuals, cotangents):
    share = jax.shard_map(
        partial(_backward_share, tiling=tiling, smoothing=smoothing),
        mesh=tiling.mesh,
        in_specs=(ROWS, ROWS, WHOLE, (ROWS, ROWS, KEPT), WHOLE, WHOLE),
        out_specs=(ROWS, ROWS, WHOLE),
        check_vma=tiling.kernels == PLAIN,
    )
    return share(*residuals, cotangents["i2t_loss"], cotangents["t2i_loss"])


_directions.defvjp(_directions_forward, _directions_backward)
_compiled = jax.jit(_directions, static_argnums=(3, 4))  # for calls outside of a jit


def _forward_share(ximg, ytxt, temperature, tiling, smoothing):
    """Metrics; the log-sum-exp of this device's rows and columns, (n,); kept logits."""
    n, kept = len(ximg), ()
    if tiling.kernels != PLAIN:
        ximg, ytxt = contrastive_gpu.rounded(ximg), contrastive_gpu.rounded(ytxt)
    all_texts = gather(ytxt)  # (N, D)
    positive = (ximg / temperature * ytxt).sum(1)  # (n,)
    if tiling.kernels == PLAIN:
        found, kept = _walk_forward(ximg, all_texts, positive, temperature, tiling)
    else:
        shared = (ximg, all_texts, positive, temperature, tiling)
        found = contrastive_gpu.statistics(*shared, contrastive_gpu.STATISTICS)
    row_lse, best_text, column_lse, best_image = found  # columns of this device's rows

    shift = lax.pmax(column_lse, BATCH_AXES)  # (N,)
    column_sum = scatter_sum(jnp.exp(column_lse - shift))  # (n,)
    column_lse = jnp.log(column_sum) + shift[own_rows(n)]

    metrics = accuracies(positive, best_text, best_image, temperature)
    means = _mean_cosines(ximg, ytxt, all_texts, tiling)
    for direction, lse, mean in zip(
        ("i2t_loss", "t2i_loss"), (row_lse, column_lse), means, strict=True
    ):
        terms = lse - (1.0 - smoothing) * positive - smoothing * mean / temperature
        metrics[direction] = mean_over_pairs(terms)
    return metrics, (row_lse, column_lse, kept)


def _walk_forward(ximg, all_texts, positive, temperature, tiling):
    """As `contrastive_gpu.statistics`; and the kept logits."""

    # A log-sum-exp may be shifted by any number near its maximum: by the larger of the
    # pair's own logit, computed apart up to rounding, and the best of the others.
    def visit(carry, block, column_positive):
        row_sum, best_text = carry
        others = block.others()  # (n, T)
        old_shift = jnp.maximum(positive, best_text)
        best_text = jnp.maximum(best_text, others.max(1))
        shift = jnp.maximum(positive, best_text)
        row_sum *= jnp.exp(old_shift - shift)
        row_sum += jnp.exp(block.logits - shift[:, None]).sum(1)
        best_image = others.max(0)  # (T,)
        column_shift = jnp.maximum(column_positive, best_image)
        column_sum = jnp.exp(block.logits - column_shift).sum(0)
        return (row_sum, best_text), (column_shift, column_sum, best_image)

    start = (jnp.zeros(len(ximg)), jnp.full(len(ximg), EXCLUDED))
    rows, columns, kept = walk(
        tiling, ximg / temperature, all_texts, visit, start, gather(positive)
    )
    row_sum, best_text = rows
    column_shift, column_sum, best_image = columns
    row_lse = jnp.log(row_sum) + jnp.maximum(positive, best_text)
    return (row_lse, best_text, jnp.log(column_sum) + column_shift, best_image), kept


def _mean_cosines(ximg, ytxt, all_texts, tiling):
    """Mean cosine of this device's images, and of its texts, with their candidates.

    The mean of products is the product with the mean: no logits are needed.
    """
    group = own_rows(len(ximg)) // tiling.candidates  # (n,)
    split = (tiling.groups, tiling.candidates, -1)
    mean_text = all_texts.reshape(split).mean(1, jnp.float32)  # (groups, D)
    sums = tiling.product(jax.nn.one_hot(group, tiling.groups).T, ximg)
    mean_image = lax.psum(sums, BATCH_AXES) / tiling.candidates  # (groups, D)
    return (ximg * mean_text[group]).sum(1), (ytxt * mean_image[group]).sum(1)


def _backward_share(ximg, ytxt, temperature, found, i2t, t2i, tiling, smoothing):
    """Gradients of i2t * L_i2t + t2i * L_t2i for this device's rows and temperature."""
    row_lse, column_lse, kept = found
    lse, weights = (row_lse, gather(column_lse)), (i2t, t2i)  # (n,), (N,)
    if tiling.kernels == PLAIN:
        shared = (gather(ytxt), temperature, lse, weights, tiling, smoothing)
        dimg, dtxt = _walk_backward(ximg, *shared, kept)
    else:
        ximg, ytxt = contrastive_gpu.rounded(ximg), contrastive_gpu.rounded(ytxt)
        shared = (gather(ytxt), temperature, lse, weights, tiling, smoothing)
        cut = contrastive_gpu.GRADIENTS, contrastive_gpu.CHUNK_BYTES
        dimg, dtxt = contrastive_gpu.gradients(ximg, *shared, *cut)
    scale = 1.0 / (tiling.pairs * temperature)
    dimg, dtxt = scale * dimg, scale * scatter_sum(dtxt)
    # sum_ij dz_ij z_ij = sum_i x_i . dx_i, and dz_ij / ds = -z_ij / s.
    dtemperature = -lax.psum((ximg * dimg).sum(), BATCH_AXES) / temperature
    return dimg, dtxt, dtemperature


def _walk_backward(ximg, all_texts, temperature, lse, weights, tiling, smoothing, kept):
    """As `contrastive_gpu.gradients`, with the kept logits."""
    row_lse, column_lse = lse
    i2t, t2i = weights

    def visit(dimg, block, lse):
        # A direction's gradient by a logit is (probability - target) / N.
        target = (1.0 - smoothing) * block.own
        target += smoothing / tiling.candidates * block.candidate
        dlogits = i2t * (jnp.exp(block.logits - row_lse[:, None]) - target)
        dlogits += t2i * (jnp.exp(block.logits - lse) - target)  # (n, T)
        dimg += tiling.product(dlogits, block.texts)  # (n, D)
        return dimg, tiling.product(dlogits.T, ximg)  # (T, D)

    start = jnp.zeros(ximg.shape)
    dimg, dtxt, _ = walk(
        tiling, ximg / temperature, all_texts, visit, start, column_lse, kept
    )
    return dimg, dtxt
