"""Distillation of a teacher's similarities over the global batch.

`distillation_loss` has the formula. It walks over the same tiles as the contrastive
loss, see `tiles`. In each tile, the teacher's logits are computed beside the student's,
so memory stays linear in N. No logits are kept for the backward pass.
"""

import dataclasses
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
    own_sum,
    scatter_sum,
    visit_pairs,
)
from align_jax.losses.logits import Directions, Logits
from align_jax.losses.tiles import (
    EXCLUDED,
    GATHER,
    RING,
    ROWS,
    WHOLE,
    LogitBlock,
    Tiling,
    make_tiling,
    mean_over_pairs,
    own_rows,
)


class Teacher(NamedTuple):
    """A teacher's embeddings of the pairs, without gradients.

    Attributes:
      images: (N, E) unit vectors of the images, split by rows; E may differ from the
        student's width.
      texts: (N, E) unit vectors of the texts, split in the same way.
      temperature: positive divisor of the teacher's cosine similarities.
    """

    images: Any
    texts: Any
    temperature: Any


def distillation_loss(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    temperature: jax.Array,
    teacher: Teacher,
    mesh: Mesh,
    negatives: float = 1.0,
    tile: int | None = None,
    precision: str = "highest",
    exchange: str = GATHER,
) -> Directions[jax.Array]:
    """Computes the divergence of the student's similarities from the teacher's.

    The student has unit vectors x_i (images) and y_j (texts), temperature s and logits
    z_ij = x_i . y_j / s. The teacher has u_i, v_j, r and t_ij = u_i . v_j / r. With N
    pairs, the two directions are (L_distill of MobileCLIP, arXiv 2311.17049, section
    3.1; L_CRD of CLIP-KD, arXiv 2307.12732, section 3.2)

        p_ij = exp(z_ij) / sum_k exp(z_ik)    q_ij = exp(t_ij) / sum_k exp(t_ik)
        D_i2t = 1/N sum_i KL(q_i || p_i) = 1/N sum_ij q_ij log( q_ij / p_ij )

    and D_t2i, the same of the transposed logits. The sums run over the candidates of i
    or j, as in `contrastive_loss`. The gradient of D_i2t by z_ij is (p_ij - q_ij) / N:
    it is zero if the student's logits are the teacher's.

    Args:
      image_embeddings: (N, D) unit vectors, split over the mesh by rows.
      text_embeddings: (N, D) unit vectors, split in the same way; row i matches image
        i.
      temperature: () positive divisor of the student's cosine similarities.
      teacher: the teacher's embeddings and temperature.
      mesh: mesh of the devices; N is a multiple of their number.
      negatives: share of the batch that a pair is compared with, 1 / a whole number;
        see `make_tiling`.
      tile: number of columns of the logits held at a time; None lets `make_tiling`
        choose.
      precision: precision of the matrix products, a name of `jax.lax.Precision`.
      exchange: form of the exchange, "gather" or "ring", see `contrastive_loss`.

    Returns:
      D_i2t and D_t2i, () each, in nats. The student's embeddings and temperature have a
      gradient.

    Raises:
      ValueError: negatives, tile or exchange is invalid, or N does not divide over the
        devices.
    """
    pairs = len(image_embeddings)
    tiling = make_tiling(pairs, mesh, negatives, tile, precision, exchange=exchange)
    tiling = dataclasses.replace(tiling, kept=0, kept_steps=0)
    ratio = jnp.asarray(teacher.temperature, jnp.float32)
    known = Teacher(*map(lax.stop_gradient, (teacher.images, teacher.texts, ratio)))
    return _compiled(image_embeddings, text_embeddings, temperature, known, tiling)


class Residuals(NamedTuple):
    """Arrays of the forward pass for the backward pass, or their PartitionSpecs.

    Attributes:
      ximg: (N, D) images, split by rows.
      ytxt: (N, D) texts, split by rows.
      temperature: () temperature.
      teacher: the teacher.
      lse: the student's log-sum-exps of rows and columns, (N,) each, split by rows.
      teacher_lse: the teacher's log-sum-exps, in the same form.
    """

    ximg: Any
    ytxt: Any
    temperature: Any
    teacher: Teacher
    lse: Any
    teacher_lse: Any


TEACHER = Teacher(ROWS, ROWS, WHOLE)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _divergences(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    teacher: Teacher,
    tiling: Tiling,
) -> Directions[jax.Array]:
    """Returns D_i2t and D_t2i."""
    return _divergences_forward(ximg, ytxt, temperature, teacher, tiling)[0]


def _divergences_forward(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    teacher: Teacher,
    tiling: Tiling,
) -> tuple[Directions[jax.Array], Residuals]:
    share = jax.shard_map(
        partial(_forward_share, tiling=tiling),
        mesh=tiling.mesh,
        in_specs=(ROWS, ROWS, WHOLE, TEACHER),
        out_specs=(WHOLE, ROWS, ROWS),
    )
    found, lse, teacher_lse = share(ximg, ytxt, temperature, teacher)
    residuals = Residuals(ximg, ytxt, temperature, teacher, lse, teacher_lse)
    return found, residuals


def _divergences_backward(
    tiling: Tiling, residuals: Residuals, cotangents: Directions[jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    share = jax.shard_map(
        partial(_backward_share, tiling=tiling),
        mesh=tiling.mesh,
        in_specs=(Residuals(ROWS, ROWS, WHOLE, TEACHER, ROWS, ROWS), WHOLE),
        out_specs=(ROWS, ROWS, WHOLE),
    )
    return *share(residuals, cotangents), None


_divergences.defvjp(_divergences_forward, _divergences_backward)
_compiled = jax.jit(_divergences, static_argnums=4)  # for calls outside of a jit


class Sums(NamedTuple):
    """Sums of exponentials along rows or columns, shifted by the largest logit.

    Attributes:
      most: (n,) largest logit z of the student.
      total: (n,) sum of exp(z - most).
      teacher_most: (n,) largest logit t of the teacher.
      teacher_total: (n,) sum of exp(t - teacher_most).
      lead: (n,) sum of exp(t - teacher_most) (t - z).
    """

    most: jax.Array
    total: jax.Array
    teacher_most: jax.Array
    teacher_total: jax.Array
    lead: jax.Array


def _sum_block(z: jax.Array, t: jax.Array, axis: int) -> Sums:
    """Returns the sums of a block of logits (n, T) along an axis."""
    most, teacher_most = z.max(axis), t.max(axis)
    total = jnp.exp(z - jnp.expand_dims(most, axis)).sum(axis)
    odds = jnp.exp(t - jnp.expand_dims(teacher_most, axis))
    return Sums(most, total, teacher_most, odds.sum(axis), (odds * (t - z)).sum(axis))


def _add(a: Sums, b: Sums) -> Sums:
    """Joins the sums over two parts of the same rows."""
    most = jnp.maximum(a.most, b.most)
    teacher_most = jnp.maximum(a.teacher_most, b.teacher_most)
    by_a, by_b = (jnp.exp(part.teacher_most - teacher_most) for part in (a, b))
    return Sums(
        most,
        a.total * jnp.exp(a.most - most) + b.total * jnp.exp(b.most - most),
        teacher_most,
        a.teacher_total * by_a + b.teacher_total * by_b,
        a.lead * by_a + b.lead * by_b,
    )


def _add_devices(sums: Sums) -> Sums:
    """Returns the sums (n,) of this device's columns over all devices' rows.

    Args:
      sums: sums (N,) of all columns over this device's rows.
    """

    def add(most: jax.Array, *totals: jax.Array) -> tuple[jax.Array, ...]:
        every = lax.pmax(most, BATCH_AXES)  # (N,)
        scale = jnp.exp(most - every)
        added = tuple(scatter_sum(total * scale) for total in totals)  # (n,) each
        return every[own_rows(len(added[0]))], *added

    most, total = add(sums.most, sums.total)
    others = add(sums.teacher_most, sums.teacher_total, sums.lead)
    return Sums(most, total, *others)


def _divergence(sums: Sums) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the mean divergence (), and log-sum-exps of student and teacher, (n,)."""
    lse = jnp.log(sums.total) + sums.most
    teacher_lse = jnp.log(sums.teacher_total) + sums.teacher_most
    # log(q / p) = t - z + lse - teacher_lse, and its mean under q is KL(q || p).
    terms = sums.lead / sums.teacher_total + lse - teacher_lse
    return mean_over_pairs(terms), lse, teacher_lse


def _teacher_logits(
    block: LogitBlock, scaled_images: jax.Array, texts: jax.Array, tiling: Tiling
) -> jax.Array:
    """Returns the teacher's logits (n, T) of a block."""
    logits = tiling.product(scaled_images, texts.T)
    return jnp.where(block.candidate, logits, EXCLUDED)


def _forward_share(
    ximg: jax.Array,
    ytxt: jax.Array,
    temperature: jax.Array,
    teacher: Teacher,
    tiling: Tiling,
) -> tuple[Directions, Directions, Directions]:
    """Returns both divergences, and this device's log-sum-exps of both models."""
    n = len(ximg)
    teacher_images = teacher.images / teacher.temperature

    def visit(
        sums: Sums, block: LogitBlock, teacher_images: jax.Array, texts: jax.Array
    ) -> tuple[Sums, Sums]:
        t = _teacher_logits(block, teacher_images, texts, tiling)
        return _add(sums, _sum_block(block.logits, t, 1)), _sum_block(
            block.logits, t, 0
        )

    none, zero = jnp.full(n, EXCLUDED), jnp.zeros(n)
    start = Sums(none, zero, none, zero, zero)
    rows, columns, _ = visit_pairs(
        Logits(ximg, exchanged(ytxt, tiling), temperature, tiling),
        visit,
        carry=start,
        rows=teacher_images,
        columns=Columns(teacher.texts, start=start, join=_add),
    )
    if tiling.exchange != RING:
        columns = _add_devices(columns)
    i2t, t2i = _divergence(rows), _divergence(columns)
    found, lse, teacher_lse = map(Directions, i2t, t2i)
    return found, lse, teacher_lse


def _backward_share(
    residuals: Residuals, weights: Directions[jax.Array], tiling: Tiling
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of this device's rows and of the temperature."""
    ximg, ytxt, temperature, teacher, lse, teacher_lse = residuals
    teacher_images = teacher.images / teacher.temperature

    def visit(
        dimg: jax.Array,
        block: LogitBlock,
        rows: tuple[jax.Array, ...],
        columns: tuple[jax.Array, ...],
    ) -> tuple[jax.Array, jax.Array]:
        ximg, teacher_images, row_lse, teacher_row_lse = rows
        texts, column_lse, teacher_column_lse = columns
        t = _teacher_logits(block, teacher_images, texts, tiling)
        z = block.logits

        def shares(rows: jax.Array, columns: jax.Array, logits: jax.Array) -> Any:
            by_row = weights.i2t * jnp.exp(logits - rows[:, None])
            return by_row + weights.t2i * jnp.exp(logits - columns[None])

        dlogits = shares(row_lse, column_lse, z)
        dlogits -= shares(teacher_row_lse, teacher_column_lse, t)  # (n, T)
        dimg += tiling.product(dlogits, block.texts)  # (n, D)
        return dimg, tiling.product(dlogits.T, ximg)  # (T, D)

    zeros = jnp.zeros(ximg.shape)
    columns = (teacher.texts, lse.t2i, teacher_lse.t2i)
    dimg, dtxt, _ = visit_pairs(
        Logits(ximg, exchanged(ytxt, tiling), temperature, tiling),
        visit,
        carry=zeros,
        rows=(ximg, teacher_images, lse.i2t, teacher_lse.i2t),
        columns=Columns(columns, start=zeros, join=jnp.add),
    )
    scale = 1.0 / (tiling.pairs * temperature)
    dimg, dtxt = scale * dimg, scale * own_sum(dtxt, tiling)
    # sum_ij dz_ij z_ij = sum_i x_i . dx_i, and dz_ij / ds = -z_ij / s.
    dtemperature = -lax.psum((ximg * dimg).sum(), BATCH_AXES) / temperature
    return dimg, dtxt, dtemperature
