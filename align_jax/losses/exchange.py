"""How the texts of all devices meet the images of each device.

Two forms of `Tiling.exchange` give the same losses:

* "gather": a device gathers all texts, (N, D), and walks over them. It sees whole rows
  (image to text). Columns (text to image) are combined over the devices by a maximum
  and sums of N numbers each.
* "ring": the texts of one device at a time are on a device, and move on around a ring,
  see `ring`. A device's memory is linear in its n = N / devices pairs.

All functions run under `shard_map`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from align_jax.devices.mesh import BATCH_AXES, INNER_AXES, SLICE_AXIS
from align_jax.losses.logits import Logits
from align_jax.losses.ring import Part, ring
from align_jax.losses.tiles import RING, Tiling, Visit, make_block, own_rows, walk


class Columns(NamedTuple):
    """The arrays of this device's n texts, one part for each column of the logits.

    Attributes:
      arrays: pytree of (n, ...) arrays, which a visit reads.
      start: pytree of (n, ...) arrays: the result of a column without any image.
      join: function of two results of the same columns over different images, which
        returns the result over both.
    """

    arrays: Any
    start: Any
    join: Callable[[Any, Any], Any]


def visit_pairs(
    logits: Logits,
    visit: Visit,
    carry: Any,
    rows: Any,
    columns: Columns,
    kept: jax.Array | None = None,
) -> tuple[Any, Any, jax.Array]:
    """Visits the logits of this device's images with all texts, tile by tile.

    Args:
      logits: images (n, D), and texts from `exchanged`.
      visit: function of (carry, `LogitBlock`, rows, columns), which returns (carry,
        results of the block's columns over its rows). It gets the block's parts of
        `carry`, `rows` and `columns.arrays`.
      carry: pytree of (n, ...) arrays before the first visit.
      rows: pytree of (n, ...) arrays of the images.
      columns: arrays of this device's texts.
      kept: logits that an earlier call for the same embeddings returned, or None.

    Returns:
      The last carry, the results of the columns, and logits to keep for the backward
      pass. With "gather", the results are those of all N texts over this device's
      images; with "ring", of this device's texts over all images.
    """
    tiling, temperature = logits.tiling, logits.temperature
    if tiling.exchange != RING:
        return walk(
            tiling,
            logits.ximg / temperature,
            logits.texts,
            visit,
            carry,
            rows,
            jax.tree.map(gather, columns.arrays),
            kept,
        )

    def compute(
        carry: Any, rows: Part, columns: Part, kept: jax.Array | None
    ) -> tuple[Any, Any, jax.Array]:
        images, row_arrays = rows.arrays
        texts, column_arrays = columns.arrays
        block = make_block(
            tiling,
            images / temperature,
            texts,
            rows.ids,
            columns.ids,
            tiling.groups > 1 or tiling.pads,
            kept,
        )
        carry, found = visit(carry, block, row_arrays, column_arrays)
        return carry, found, block.logits

    return ring(
        tiling,
        compute,
        rows=(logits.ximg, rows),
        columns=(logits.texts, columns.arrays),
        carry=carry,
        start=columns.start,
        join=columns.join,
        kept=kept,
    )


def exchanged(x: jax.Array, tiling: Tiling) -> jax.Array:
    """Returns all devices' rows (N, ...) of x (n, ...) to "gather"; x for a "ring"."""
    return x if tiling.exchange == RING else gather(x)


def own_sum(x: jax.Array, tiling: Tiling) -> jax.Array:
    """Returns sums (n, ...) over all images, from the results x of `visit_pairs`."""
    return x if tiling.exchange == RING else scatter_sum(x)


def own_most(x: jax.Array, tiling: Tiling) -> jax.Array:
    """Returns maxima (n,) over all images, from the results x of `visit_pairs`."""
    if tiling.exchange == RING:
        return x
    return lax.pmax(x, BATCH_AXES)[own_rows(tiling.own_pairs)]


def gather(x: jax.Array) -> jax.Array:
    """Gathers all devices' rows of x (n, ...) to (N, ...), in the order of the pairs.

    With S slices of P devices, a device first exchanges its n rows with the devices at
    its place in the other slices, and then gathers the S n rows of each device of its
    slice. So (S - 1) n rows reach it from other slices, and each row enters a slice
    once. If the slices gathered their rows first, each device would receive
    (S - 1) P n rows from other slices, and each row would enter a slice P times.
    """
    if lax.axis_size(SLICE_AXIS) == 1:
        return lax.all_gather(x, BATCH_AXES, tiled=True)
    rows = lax.all_gather(x, SLICE_AXIS)  # (S, n, ...)
    rows = lax.all_gather(rows, INNER_AXES, axis=1, tiled=True)  # (S, P n, ...)
    return rows.reshape(-1, *x.shape[1:])


def scatter_sum(x: jax.Array) -> jax.Array:
    """Returns this device's rows (n, ...) of the sum of all devices' x (N, ...).

    The steps of `gather` in reverse order: the sums of a slice first, and of these a
    device receives (S - 1) n rows from other slices.
    """
    slices = lax.axis_size(SLICE_AXIS)
    if slices == 1:
        return lax.psum_scatter(x, BATCH_AXES, tiled=True)
    rows = x.reshape(slices, -1, *x.shape[1:])  # (S, P n, ...)
    rows = lax.psum_scatter(rows, INNER_AXES, scatter_dimension=1, tiled=True)
    return lax.psum_scatter(rows, SLICE_AXIS)  # (S, n, ...) -> (n, ...)
