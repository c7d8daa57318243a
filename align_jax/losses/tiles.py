"""Contrastive objectives on one device, tile by tile.

`make_tiling` is called first; `walk` and all functions below it run under `shard_map`.
A device holds n of the N pairs. It gathers all texts and walks over them in tiles of T
columns, so that only a block (n, T) of the N x N logits is held at a time. The blocks
of the first columns are kept for the backward pass, which computes the others again:
this trades time for memory that stays linear in N. One product serves both directions.
A device sees whole rows (image to text); columns (text to image) are combined over the
devices by a maximum and a sum of N numbers each.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from align_jax.devices.kernel_choice import PLAIN
from align_jax.devices.mesh import BATCH_AXES, INNER_AXES, SLICE_AXIS

ROWS, WHOLE = PartitionSpec(BATCH_AXES), PartitionSpec()
KEPT = PartitionSpec(None, BATCH_AXES)  # for kept logits (K, n, T)

# Stands for the logit of no candidate. It is finite, because inf - inf is NaN.
EXCLUDED = -1e30
MARGIN = 1e-5  # cosine; more than a tensor core's rounding of a product of unit vectors

# A block of float32 logits is at most this large on a device.
BLOCK_BYTES = 32 * 2**20
KEPT_COLUMNS = 4096  # maximum columns of the logits kept for the backward pass
LANES = 128  # a tile is a multiple of this, if memory allows


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Division of the logits into tiles, fixed when a loss is compiled.

    Attributes:
      mesh: mesh of the devices.
      pairs: number of pairs N on all devices.
      groups: number of groups; a pair's candidates are the N / groups consecutive pairs
        of its group.
      tile: number of columns T of a block.
      kept: number K of blocks that are kept for the backward pass.
      precision: precision of the matrix products, a name of `jax.lax.Precision`.
      kernels: implementation of the logits, see `contrastive_gpu.choose`; "plain" is
        `walk`.
    """

    mesh: Mesh
    pairs: int
    groups: int
    tile: int
    kept: int
    precision: str
    kernels: str = PLAIN

    @property
    def candidates(self) -> int:
        """Number of texts that an image is compared with, its pair's text included."""
        return self.pairs // self.groups

    def product(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Returns the matrix product of a and b in float32."""
        return jnp.matmul(
            a, b, precision=self.precision, preferred_element_type=jnp.float32
        )


def make_tiling(
    pairs: int,
    mesh: Mesh,
    negatives: float,
    tile: int | None,
    precision: str,
    walks: int = 1,
) -> Tiling:
    """Chooses the division of the logits into tiles.

    ALIGN's ablation (arXiv 2102.05918, Table 8) trains with 50 % and 25 % of the
    in-batch negatives and does not say which. Here the batch is cut into 1 / negatives
    groups of consecutive pairs, for example 2 for 50 %. A pair is compared only with
    the N / groups pairs of its group, in both directions; these are its candidates.

    Args:
      pairs: number of pairs N.
      mesh: mesh of the devices, which share the N rows.
      negatives: share of the batch that a pair is compared with, 1 / groups.
      tile: number of columns T, reduced to N if it is larger. None chooses the most
        that fit in `BLOCK_BYTES`, rounded down to a multiple of `LANES` if possible.
      precision: precision of the matrix products, a name of `jax.lax.Precision`.
      walks: number of losses in a step, which share the memory for kept logits.

    Raises:
      ValueError: `negatives` is not 1 / a whole number of groups that divides N, N does
        not divide over the devices, or `tile` is below 1.
    """
    groups = round(1.0 / negatives) if 0 < negatives <= 1 else 0
    if not groups or abs(groups * negatives - 1.0) > 1e-6 or pairs % groups:
        raise ValueError(
            f"negatives is {negatives}; wanted 1 / a whole number of groups that"
            f" divides {pairs} pairs"
        )
    if pairs % mesh.size:
        raise ValueError(f"{pairs} pairs do not divide over {mesh.size} devices")
    if tile is None:
        tile = BLOCK_BYTES // (4 * (pairs // mesh.size))
        tile = tile // LANES * LANES or max(tile, 1)
    elif tile < 1:
        raise ValueError(f"tile is {tile}; wanted at least 1")
    tile = min(tile, pairs)
    kept = min(-(-pairs // tile), KEPT_COLUMNS // (tile * walks))
    return Tiling(
        mesh=mesh,
        pairs=pairs,
        groups=groups,
        tile=tile,
        kept=kept,
        precision=precision,
    )


@dataclasses.dataclass(frozen=True)
class LogitBlock:
    """Logits of this device's n images with T texts.

    Attributes:
      logits: (n, T) logits, `EXCLUDED` where the text is no candidate.
      texts: (T, D) texts, zeros beyond the last one.
      own: (n, T) bool, true where image and text are a pair.
      candidate: (n, T) bool, true where the text is a candidate of the image; or True,
        (), if all texts are candidates of all images.
    """

    logits: jax.Array
    texts: jax.Array
    own: jax.Array
    candidate: jax.Array

    def others(self) -> jax.Array:
        """Returns the logits (n, T), with `EXCLUDED` for those of pairs."""
        return jnp.where(self.own, EXCLUDED, self.logits)


Visit = Callable[[Any, LogitBlock, Any], tuple[Any, Any]]


def walk(
    tiling: Tiling,
    scaled_images: jax.Array,
    all_texts: jax.Array,
    visit: Visit,
    carry: Any,
    columns: Any = (),
    kept: jax.Array | None = None,
) -> tuple[Any, Any, jax.Array]:
    """Visits every tile of T columns in order.

    Args:
      tiling: division of the logits into tiles.
      scaled_images: (n, D) images of this device, divided by the temperature.
      all_texts: (N, D) texts of all devices.
      visit: function of (carry, `LogitBlock`, the tile's part of `columns`), which
        returns (carry, pytree of (T, ...) arrays).
      carry: carry of the first visit.
      columns: pytree of (N, ...) arrays, of which a visit gets (T, ...), with zeros
        beyond the last text.
      kept: logits (K, n, T) that an earlier walk over the same embeddings returned;
        None to compute them.

    Returns:
      The last carry, the arrays that the visits returned, joined to (N, ...), and the
      logits (K, n, T) of the first K tiles, without what `visit` adds to them.
    """
    tiles = -(-tiling.pairs // tiling.tile)
    beyond = tiles * tiling.tile - tiling.pairs

    def split(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, beyond)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(tiles, tiling.tile, *x.shape[1:])

    def join(x: jax.Array) -> jax.Array:
        return x.reshape(-1, *x.shape[2:])[: tiling.pairs]

    rows = own_rows(len(scaled_images))[:, None]  # (n, 1)

    def body(
        carry: Any, tile: tuple[jax.Array, jax.Array, Any, jax.Array | None]
    ) -> tuple[Any, tuple[Any, jax.Array]]:
        start, texts, columns, logits = tile
        ids = (start + jnp.arange(tiling.tile))[None]  # (1, T)
        candidate = jnp.bool_(True)
        if tiling.groups > 1 or beyond:
            # Columns beyond the last text are in a group that no image has.
            candidate = rows // tiling.candidates == ids // tiling.candidates
        if logits is None:
            logits = tiling.product(scaled_images, texts.T)  # (n, T)
            logits = jnp.where(candidate, logits, EXCLUDED)
        block = LogitBlock(logits, texts, rows == ids, candidate)
        carry, visited = visit(carry, block, columns)
        return carry, (visited, logits)

    def rest(carry: Any, tile: tuple[jax.Array, jax.Array, Any]) -> tuple[Any, Any]:
        carry, (visited, _) = body(carry, (*tile, None))
        return carry, visited

    starts = jnp.arange(tiles) * tiling.tile
    tiled = (starts, split(all_texts), jax.tree.map(split, columns))
    first = jax.tree.map(lambda x: x[: tiling.kept], tiled)
    others = jax.tree.map(lambda x: x[tiling.kept :], tiled)
    carry = jax.tree.map(lambda x: lax.pcast(x, BATCH_AXES, to="varying"), carry)
    carry, (visited, kept) = lax.scan(body, carry, (*first, kept))
    carry, visited_others = lax.scan(rest, carry, others)
    joined = jax.tree.map(lambda *x: join(jnp.concatenate(x)), visited, visited_others)
    return carry, joined, kept


def own_rows(n: int) -> jax.Array:
    """Returns the global indices (n,) of this device's pairs."""
    return lax.axis_index(BATCH_AXES) * n + jnp.arange(n)


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


def mean_over_pairs(x: jax.Array) -> jax.Array:
    """Returns the mean () of all devices' x (n,)."""
    return lax.pmean(x.mean(), BATCH_AXES)


def accuracies(
    positive: jax.Array,
    best_text: jax.Array,
    best_image: jax.Array,
    temperature: jax.Array,
) -> dict[str, jax.Array]:
    """Returns the in-batch accuracy of both directions.

    It is the share of images whose own text is the best of their candidates, and of
    texts with their images. The pair must be ahead by a cosine of `MARGIN`, so that a
    tie counts as wrong, whatever the rounding of two equal products.

    Args:
      positive: (n,) logits of this device's pairs.
      best_text: (n,) best logit of each image with another pair's text.
      best_image: (N,) best logit of each text with another pair's image of this device.
      temperature: () divisor of the logits.

    Returns:
      "i2t_accuracy" and "t2i_accuracy", () each, over all pairs of all devices.
    """
    best_image = lax.pmax(best_image, BATCH_AXES)[own_rows(len(positive))]
    least = positive - MARGIN / temperature
    return {
        "i2t_accuracy": mean_over_pairs(least > best_text),
        "t2i_accuracy": mean_over_pairs(least > best_image),
    }
