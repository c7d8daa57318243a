"""The pairwise sigmoid loss (SigLIP, arXiv 2303.15343) on the tiles of ALIGN's loss."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from align_jax.devices.mesh import BATCH_AXES
from align_jax.losses.exchange import (
    Columns,
    exchanged,
    own_most,
    own_sum,
    visit_pairs,
)
from align_jax.losses.logits import Logits
from align_jax.losses.tiles import (
    EXCLUDED,
    GATHER,
    ROWS,
    WHOLE,
    LogitBlock,
    Tiling,
    accuracies,
    make_tiling,
)

LossAndAccuracy = tuple[jax.Array, dict[str, jax.Array]]  # () each


def sigmoid_loss(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    temperature: jax.Array,
    bias: jax.Array,
    mesh: Mesh,
    negatives: float = 1.0,
    tile: int | None = None,
    precision: str = "highest",
    exchange: str = GATHER,
) -> LossAndAccuracy:
    """Computes SigLIP's loss over all pairs of all devices, in memory linear in N.

    With unit vectors x_i (images) and y_j (texts), temperature s, bias b, N pairs and
    logits z_ij = x_i . y_j / s + b, the loss decides for every image and every text
    whether they are a pair (arXiv 2303.15343):

        L = -1/N sum_i ( log sigmoid(z_ii) + sum_{j != i} log sigmoid(-z_ij) )

    If `negatives` is below 1, j runs over the candidates of i only. SigLIP learns
    log(1 / s), which starts at log 10, and b, which starts at -10.

    Args:
      image_embeddings: (N, D) unit vectors, split over the mesh by rows.
      text_embeddings: (N, D) unit vectors, split in the same way; row i matches image
        i.
      temperature: () positive divisor of the cosine similarities.
      bias: () bias that is added to the logits.
      mesh: mesh of the devices; N is a multiple of their number.
      negatives: share of the batch that a pair is compared with, 1 / a whole number;
        see `make_tiling`.
      tile: number of columns of the logits held at a time; None lets `make_tiling`
        choose.
      precision: precision of the matrix products, a name of `jax.lax.Precision`.
      exchange: form of the exchange, "gather" or "ring", see `contrastive_loss`.
        SigLIP's chunks move around the devices as in the ring (section 3.3).

    Returns:
      The loss, (), in nats, and metrics, () each: the `accuracies` of both directions.
      Only the loss has a gradient.

    Raises:
      ValueError: negatives, tile or exchange is invalid, or N does not divide over the
        devices.
    """
    pairs = len(image_embeddings)
    tiling = make_tiling(pairs, mesh, negatives, tile, precision, exchange=exchange)
    loss, metrics = _compiled(
        image_embeddings, text_embeddings, temperature, bias, tiling
    )
    return loss, jax.tree.map(lax.stop_gradient, metrics)


class SigmoidResiduals(NamedTuple):
    """Arrays of the forward pass for the backward pass, or their PartitionSpecs.

    Attributes:
      ximg: (N, D) images, split by rows.
      ytxt: (N, D) texts, split by rows.
      temperature: () temperature.
      bias: () bias of the logits.
      kept: kept logits, see `visit_pairs`.
    """

    ximg: Any
    ytxt: Any
    temperature: Any
    bias: Any
    kept: Any


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _decisions(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    bias: jax.Array,
    tiling: Tiling,
) -> LossAndAccuracy:
    """Returns the loss and the accuracies."""
    return _decisions_forward(ximg, ytxt, temperature, bias, tiling)[0]


def _decisions_forward(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    bias: jax.Array,
    tiling: Tiling,
) -> tuple[LossAndAccuracy, SigmoidResiduals]:
    share = jax.shard_map(
        partial(_forward_share, tiling=tiling),
        mesh=tiling.mesh,
        in_specs=(ROWS, ROWS, WHOLE, WHOLE),
        out_specs=(WHOLE, tiling.kept_spec),
    )
    loss_and_accuracy, kept = share(ximg, ytxt, temperature, bias)
    return loss_and_accuracy, SigmoidResiduals(ximg, ytxt, temperature, bias, kept)


def _decisions_backward(
    tiling: Tiling, residuals: SigmoidResiduals, cotangents: LossAndAccuracy
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    share = jax.shard_map(
        partial(_backward_share, tiling=tiling),
        mesh=tiling.mesh,
        in_specs=(
            SigmoidResiduals(ROWS, ROWS, WHOLE, WHOLE, tiling.kept_spec),
            WHOLE,
        ),
        out_specs=(ROWS, ROWS, WHOLE, WHOLE),
    )
    return share(residuals, cotangents[0])


_decisions.defvjp(_decisions_forward, _decisions_backward)
_compiled = jax.jit(_decisions, static_argnums=4)  # for calls outside of a jit


def _forward_share(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    bias: jax.Array,
    tiling: Tiling,
) -> tuple[LossAndAccuracy, jax.Array]:
    """Returns loss, accuracies and kept logits for a device's ximg, ytxt (n, D)."""
    positive = (ximg / temperature * ytxt).sum(1) + bias  # (n,)

    def visit(
        carry: tuple[jax.Array, jax.Array], block: LogitBlock, *_: tuple[()]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        total, best_text = carry
        others = block.others() + bias  # (n, T)
        # -log sigmoid(-z) is softplus(z), and softplus(-z) is softplus(z) - z.
        total += jax.nn.softplus(block.logits + bias).sum(1)
        best_text = jnp.maximum(best_text, others.max(1))
        return (total, best_text), others.max(0)

    none = jnp.full(len(ximg), EXCLUDED)
    carry, best_image, kept = visit_pairs(
        Logits(ximg, exchanged(ytxt, tiling), temperature, tiling),
        visit,
        carry=(jnp.zeros(len(ximg)), none),
        rows=(),
        columns=Columns((), start=none, join=jnp.maximum),
    )
    total, best_text = carry
    loss = lax.psum((total - positive).sum(), BATCH_AXES) / tiling.pairs
    best_image = own_most(best_image, tiling)
    return (loss, accuracies(positive, best_text, best_image, temperature)), kept


def _backward_share(
    residuals: SigmoidResiduals, cotangent: jax.Array, tiling: Tiling
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of this device's rows, the temperature and the bias."""
    ximg, ytxt, temperature, bias, kept = residuals

    def visit(
        carry: tuple[jax.Array, jax.Array],
        block: LogitBlock,
        ximg: jax.Array,
        _: tuple[()],
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        dimg, dbias = carry
        dlogits = jax.nn.sigmoid(block.logits + bias)
        dlogits -= block.own.astype(jnp.float32)  # (n, T)
        dimg += tiling.product(dlogits, block.texts)  # (n, D)
        dbias += dlogits.sum(1)
        return (dimg, dbias), tiling.product(dlogits.T, ximg)  # (T, D)

    zeros = jnp.zeros(ximg.shape)
    (dimg, dbias), dtxt, _ = visit_pairs(
        Logits(ximg, exchanged(ytxt, tiling), temperature, tiling),
        visit,
        carry=(zeros, jnp.zeros(len(ximg))),
        rows=ximg,
        columns=Columns((), start=zeros, join=jnp.add),
        kept=kept,
    )
    scale = cotangent / tiling.pairs
    dimg = (scale / temperature) * dimg
    dtxt = (scale / temperature) * own_sum(dtxt, tiling)
    dbias = scale * lax.psum(dbias.sum(), BATCH_AXES)
    # sum_ij dz_ij (z_ij - b) = sum_i x_i . dx_i
    dtemperature = -lax.psum((ximg * dimg).sum(), BATCH_AXES) / temperature
    return dimg, dtxt, dtemperature, dbias
