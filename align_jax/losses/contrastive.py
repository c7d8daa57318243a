"""ALIGN's contrastive loss over the global batch (arXiv 2102.05918, section 4.1).

`contrastive_loss` has the formula. `nested_loss` sums it over prefixes of the
embeddings (Matryoshka, arXiv 2205.13147); the other is its case of one prefix. Each
device computes the loss of its pairs under `shard_map`, see `softmax_terms`. Texts are
gathered once, at their full width. Each prefix is cut from the gathered texts and
scaled to unit length on every device, so memory stays linear in N. In the ring form of
`exchange`, each prefix goes around the ring by itself.
"""

import dataclasses
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from align_jax.devices.kernel_choice import PLAIN
from align_jax.devices.mesh import BATCH_AXES
from align_jax.losses import contrastive_gpu
from align_jax.losses.exchange import exchanged, own_sum
from align_jax.losses.logits import Directions, Logits
from align_jax.losses.softmax_terms import backward_terms, forward_terms
from align_jax.losses.tiles import GATHER, ROWS, WHOLE, Tiling, make_tiling
from align_jax.models.dual_encoder import unit_length

REDUCTIONS = {"sum": 1.0, "mean": 0.5}
Widths = tuple[int, ...]


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
    exchange: str = GATHER,
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
      exchange: form of the exchange of texts, "gather" or, for memory linear in a
        device's pairs, "ring"; see `exchange`.

    Returns:
      The loss, (), in nats, and metrics, () each: "i2t_loss", "t2i_loss", and the
      `accuracies` of both directions. Only the loss has a gradient.

    Raises:
      ValueError: reduction, negatives, tile, kernels or exchange is invalid, or N does
        not divide over the devices.
    """
    return nested_loss(
        image_embeddings,
        text_embeddings,
        temperature,
        mesh,
        widths=(image_embeddings.shape[1],),
        weights=(1.0,),
        label_smoothing=label_smoothing,
        reduction=reduction,
        negatives=negatives,
        tile=tile,
        precision=precision,
        kernels=kernels,
        exchange=exchange,
    )


def nested_loss(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    temperature: jax.Array,
    mesh: Mesh,
    widths: Widths,
    weights: tuple[float, ...],
    label_smoothing: float = 0.0,
    reduction: str = "sum",
    negatives: float = 1.0,
    tile: int | None = None,
    precision: str = "highest",
    kernels: str = "auto",
    exchange: str = GATHER,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the weighted sum of `contrastive_loss` over prefixes of the embeddings.

    With the first d numbers x[:d] of a vector x, the loss is (arXiv 2205.13147,
    equation 1)

        sum_d weight_d L( x_i[:d] / |x_i[:d]|, y_j[:d] / |y_j[:d]| )

    All prefixes have one temperature.

    Args:
      image_embeddings: (N, D) unit vectors, split over the mesh by rows.
      text_embeddings: (N, D) unit vectors, split in the same way.
      temperature: () positive divisor of the cosine similarities.
      mesh: mesh of the devices.
      widths: number of components of each prefix, at most D.
      weights: weight of each width.
      label_smoothing: share of the uniform target; see `contrastive_loss` for this and
        the other arguments.
      reduction: "sum" or "mean" of the two directions.
      negatives: share of the batch that a pair is compared with.
      tile: number of columns of the logits held at a time.
      precision: precision of the matrix products.
      kernels: "auto" or "plain".
      exchange: form of the exchange, "gather" or "ring".

    Returns:
      The loss, (), and the metrics of `contrastive_loss` for the first width; for each
      other width d, their names begin with "width_d/", as "width_d/i2t_loss". Only
      the loss has a gradient.

    Raises:
      ValueError: a width is more than D, or `contrastive_loss` would raise it.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; known: {', '.join(REDUCTIONS)}")
    pairs, full = image_embeddings.shape
    if max(widths) > full:
        raise ValueError(
            f"widths are {widths}; the embeddings have {full} numbers; wanted at most"
            " these"
        )
    tiling = make_tiling(pairs, mesh, negatives, tile, precision, len(widths), exchange)
    kernels = contrastive_gpu.choose(kernels, precision, mesh)
    tiling = dataclasses.replace(tiling, kernels=kernels)
    found = _compiled(
        image_embeddings, text_embeddings, temperature, tiling, label_smoothing, widths
    )
    loss = jnp.zeros(())
    named: dict[str, jax.Array] = {}
    for width, weight, metrics in zip(widths, weights, found, strict=True):
        own = REDUCTIONS[reduction] * (metrics["i2t_loss"] + metrics["t2i_loss"])
        loss += weight * own
        prefix = "" if width == widths[0] else f"width_{width}/"
        named |= {f"{prefix}{name}": value for name, value in metrics.items()}
    return loss, jax.tree.map(lax.stop_gradient, named)


class SoftmaxResiduals(NamedTuple):
    """Arrays of the forward pass for the backward pass, or their PartitionSpecs.

    Attributes:
      ximg: (N, D) images, split by rows.
      ytxt: (N, D) texts, split by rows.
      temperature: () temperature.
      lse: natural log-sum-exps of rows and columns, (N,) each, for each width.
      kept: kept logits for each width, see `forward_terms`.
    """

    ximg: Any
    ytxt: Any
    temperature: Any
    lse: Any
    kept: Any


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _directions(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    tiling: Tiling,
    smoothing: float,
    widths: Widths,
) -> tuple[dict[str, jax.Array], ...]:
    """Returns each direction's loss and accuracy for every width."""
    return _directions_forward(ximg, ytxt, temperature, tiling, smoothing, widths)[0]


def _directions_forward(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    tiling: Tiling,
    smoothing: float,
    widths: Widths,
) -> tuple[tuple[dict[str, jax.Array], ...], SoftmaxResiduals]:
    share = jax.shard_map(
        partial(_forward_share, tiling=tiling, smoothing=smoothing, widths=widths),
        mesh=tiling.mesh,
        in_specs=(ROWS, ROWS, WHOLE),
        out_specs=(WHOLE, ROWS, tiling.kept_spec),
        check_vma=tiling.kernels == PLAIN,  # Pallas does not support the check
    )
    metrics, lse, kept = share(ximg, ytxt, temperature)
    return metrics, SoftmaxResiduals(ximg, ytxt, temperature, lse, kept)


def _directions_backward(
    tiling: Tiling,
    smoothing: float,
    widths: Widths,
    residuals: SoftmaxResiduals,
    cotangents: tuple[dict[str, jax.Array], ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    share = jax.shard_map(
        partial(_backward_share, tiling=tiling, smoothing=smoothing, widths=widths),
        mesh=tiling.mesh,
        in_specs=(
            SoftmaxResiduals(ROWS, ROWS, WHOLE, ROWS, tiling.kept_spec),
            WHOLE,
        ),
        out_specs=(ROWS, ROWS, WHOLE),
        check_vma=tiling.kernels == PLAIN,
    )
    weights = [Directions(each["i2t_loss"], each["t2i_loss"]) for each in cotangents]
    return share(residuals, weights)


_directions.defvjp(_directions_forward, _directions_backward)
_compiled = jax.jit(_directions, static_argnums=(3, 4, 5))  # for calls without a jit


def _forward_share(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    tiling: Tiling,
    smoothing: float,
    widths: Widths,
) -> tuple[tuple, tuple, tuple]:
    """Returns metrics, this device's log-sum-exps and kept logits, for every width."""
    ximg, ytxt = _rounded(ximg, tiling), _rounded(ytxt, tiling)
    every_text = exchanged(ytxt, tiling)
    found = []
    for width in widths:
        images, texts, every = (shorten(x, width)[0] for x in (ximg, ytxt, every_text))
        logits = Logits(images, every, temperature, tiling)
        found.append(forward_terms(logits, texts, smoothing))
    metrics, lse, kept = zip(*found, strict=True)
    return metrics, lse, kept


def _backward_share(
    residuals: SoftmaxResiduals,
    weights: list[Directions[jax.Array]],
    tiling: Tiling,
    smoothing: float,
    widths: Widths,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of this device's rows and of the temperature."""
    ximg, ytxt, temperature, lses, kept_logits = residuals
    ximg, every = _rounded(ximg, tiling), exchanged(_rounded(ytxt, tiling), tiling)
    scale = 1.0 / (tiling.pairs * temperature)
    dimgs, dtxts, sums = [], [], []
    for width, weight, lse, kept in zip(
        widths, weights, lses, kept_logits, strict=True
    ):
        images, to_images = shorten(ximg, width)
        texts, to_texts = shorten(every, width)
        logits = Logits(images, texts, temperature, tiling)
        dimg, dtxt = backward_terms(logits, lse, weight, smoothing, kept)
        dimg = scale * dimg
        # sum_ij dz_ij z_ij = sum_i x_i . dx_i, and dz_ij / ds = -z_ij / s.
        sums.append((images.astype(jnp.float32) * dimg).sum())
        dimgs.append(to_images(dimg))
        dtxts.append(to_texts(dtxt))
    dtemperature = -lax.psum(reduce(operator.add, sums), BATCH_AXES) / temperature
    return (
        reduce(operator.add, dimgs),
        scale * own_sum(reduce(operator.add, dtxts), tiling),
        dtemperature,
    )


def shorten(
    x: jax.Array, width: int
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Cuts vectors to a prefix of unit length, see `nested_loss`.

    Args:
      x: (n, D) unit vectors, float32 or, for kernels, bfloat16.
      width: number of the first components to keep; x itself is returned for D.

    Returns:
      The prefixes (n, width) in the type of x, and a function from the gradient of the
      prefixes, float32, to that of x (n, D). The function ignores rounding.
    """
    if width == x.shape[1]:
        return x, lambda gradient: gradient
    short, pull = jax.vjp(lambda x: unit_length(x[:, :width]), x.astype(jnp.float32))
    if x.dtype != jnp.float32:
        short = contrastive_gpu.rounded(short)
    return short, lambda gradient: pull(gradient)[0]


def _rounded(x: jax.Array, tiling: Tiling) -> jax.Array:
    return x if tiling.kernels == PLAIN else contrastive_gpu.rounded(x)
