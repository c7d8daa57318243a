"""Contrastive objectives on one device, tile by tile.

`make_tiling` is called first; `walk` and all functions below it run under `shard_map`.
A device holds n of the N pairs. It walks over texts in tiles of T columns, so that only
a block (n, T) of the N x N logits is held at a time. The blocks of the first columns
are kept for the backward pass, which computes the others again: this trades time for
memory that stays linear in N. One product serves both directions. How the texts of
other devices come to a device is said in `exchange`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from align_jax.devices.kernel_choice import PLAIN
from align_jax.devices.mesh import BATCH_AXES, SLICE_AXIS

ROWS, WHOLE = PartitionSpec(BATCH_AXES), PartitionSpec()

# Stands for the logit of no candidate. It is finite, because inf - inf is NaN.
EXCLUDED = -1e30
MARGIN = 1e-5  # cosine; more than a tensor core's rounding of a product of unit vectors

# A block of float32 logits is at most this large on a device.
BLOCK_BYTES = 32 * 2**20
KEPT_COLUMNS = 4096  # maximum columns of the logits kept for the backward pass
KEPT_BYTES = 2**30  # maximum size of these logits on a device
LANES = 128  # a tile is a multiple of this, if memory allows
RING_ROWS = 8192  # maximum rows of a block in the ring form

# Ways in which texts come to the images of other devices, see `exchange`.
GATHER, RING = "gather", "ring"
EXCHANGES = (GATHER, RING)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Division of the logits into tiles, fixed when a loss is compiled.

    Attributes:
      mesh: mesh of the devices.
      pairs: number of pairs N on all devices.
      groups: number of groups; a pair's candidates are the N / groups consecutive pairs
        of its group.
      tile: number of columns T of a block.
      kept: number K of blocks that are kept for the backward pass; in the ring form,
        for each of `kept_steps` and each block of rows.
      precision: precision of the matrix products, a name of `jax.lax.Precision`.
      kernels: implementation of the logits, see `contrastive_gpu.choose`; "plain" is
        `walk`.
      exchange: one of `EXCHANGES`.
      rows: number of rows R of a block in the ring form.
      kept_steps: number of steps of a ring inside a slice whose logits are kept.
    """

    mesh: Mesh
    pairs: int
    groups: int
    tile: int
    kept: int
    precision: str
    kernels: str = PLAIN
    exchange: str = GATHER
    rows: int = 0
    kept_steps: int = 0

    @property
    def own_pairs(self) -> int:
        """Number of pairs n of a device."""
        return self.pairs // self.mesh.size

    @property
    def blocks(self) -> tuple[int, int]:
        """Numbers of blocks, by rows and by columns, of (n, n) logits in the ring."""
        return -(-self.own_pairs // self.rows), -(-self.own_pairs // self.tile)

    @property
    def pads(self) -> bool:
        """Whether the blocks of the ring form have padding."""
        return self.own_pairs % self.rows > 0 or self.own_pairs % self.tile > 0

    @property
    def kept_spec(self) -> PartitionSpec:
        """How the devices share kept logits, (K, n, T) or those of `ring`."""
        axis = 2 if self.exchange == RING else 1
        return PartitionSpec(*[None] * axis, BATCH_AXES)

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
    exchange: str = GATHER,
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
        that fit in `BLOCK_BYTES`, rounded down to a multiple of `LANES` if possible. In
        the ring form, it is at most that, so that all tiles of a device are alike.
      precision: precision of the matrix products, a name of `jax.lax.Precision`.
      walks: number of losses in a step, which share the memory for kept logits.
      exchange: one of `EXCHANGES`.

    Raises:
      ValueError: `negatives` is not 1 / a whole number of groups that divides N, N does
        not divide over the devices, `tile` is below 1, or `exchange` is unknown.
    """
    if exchange not in EXCHANGES:
        raise ValueError(f"exchange is {exchange!r}; known: {', '.join(EXCHANGES)}")
    groups = round(1.0 / negatives) if 0 < negatives <= 1 else 0
    if not groups or abs(groups * negatives - 1.0) > 1e-6 or pairs % groups:
        raise ValueError(
            f"negatives is {negatives}; wanted 1 / a whole number of groups that"
            f" divides {pairs} pairs"
        )
    if pairs % mesh.size:
        raise ValueError(f"{pairs} pairs do not divide over {mesh.size} devices")
    n = pairs // mesh.size
    rows = even_part(n, RING_ROWS) if exchange == RING else n
    if tile is None:
        tile = BLOCK_BYTES // (4 * rows)
        tile = tile // LANES * LANES or max(tile, 1)
    elif tile < 1:
        raise ValueError(f"tile is {tile}; wanted at least 1")
    tile = even_part(n, tile) if exchange == RING else min(tile, pairs)
    kept = min(KEPT_COLUMNS, KEPT_BYTES // (4 * n)) // (tile * walks)
    tiling = Tiling(
        mesh=mesh,
        pairs=pairs,
        groups=groups,
        tile=tile,
        kept=min(-(-pairs // tile), kept),
        precision=precision,
        exchange=exchange,
        rows=rows,
    )
    return _keep_in_ring(tiling, kept) if exchange == RING else tiling


def even_part(number: int, most: int) -> int:
    """Returns the size, at most `most`, of the fewest equal parts of a number."""
    return -(-number // -(-number // most))


def _keep_in_ring(tiling: Tiling, kept: int) -> Tiling:
    """Returns the tiling of a ring that keeps at most `kept` tiles of all columns."""
    slices = tiling.mesh.shape[SLICE_AXIS]
    tiles = -(-tiling.own_pairs // tiling.tile)  # of a device
    kept //= slices
    steps = min(kept // tiles, tiling.mesh.size // slices) or min(kept, 1)
    return dataclasses.replace(tiling, kept=min(kept, tiles), kept_steps=steps)


@dataclasses.dataclass(frozen=True)
class LogitBlock:
    """Logits of n images of this device with T texts.

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


def make_block(
    tiling: Tiling,
    scaled_images: jax.Array,
    texts: jax.Array,
    rows: jax.Array,
    columns: jax.Array,
    masked: bool,
    logits: jax.Array | None = None,
) -> LogitBlock:
    """Computes the logits of n images with T texts.

    Args:
      tiling: division of the logits into tiles.
      scaled_images: (n, D) images, divided by the temperature.
      texts: (T, D) texts.
      rows: (n,) indices of the images among all N pairs; -1 for padding.
      columns: (T,) indices of the texts; outside of 0 to N - 1 for padding.
      masked: whether there is padding or a text that is no candidate.
      logits: (n, T) logits that were computed earlier; None to compute them.
    """
    own = rows[:, None] == columns[None]
    candidate = jnp.bool_(True)
    if masked:
        # Padding is in a group that no pair has.
        group = rows[:, None] // tiling.candidates
        candidate = group == columns[None] // tiling.candidates
    if logits is None:
        logits = tiling.product(scaled_images, texts.T)
        logits = jnp.where(candidate, logits, EXCLUDED)
    return LogitBlock(logits, texts, own, candidate)


Visit = Callable[[Any, LogitBlock, Any, Any], tuple[Any, Any]]


def walk(
    tiling: Tiling,
    scaled_images: jax.Array,
    all_texts: jax.Array,
    visit: Visit,
    carry: Any,
    rows: Any = (),
    columns: Any = (),
    kept: jax.Array | None = None,
) -> tuple[Any, Any, jax.Array]:
    """Visits every tile of T columns in order.

    Args:
      tiling: division of the logits into tiles.
      scaled_images: (n, D) images of this device, divided by the temperature.
      all_texts: (N, D) texts of all devices, see `exchange`.
      visit: function of (carry, `LogitBlock`, `rows`, the tile's part of `columns`),
        which returns (carry, pytree of (T, ...) arrays).
      carry: carry of the first visit.
      rows: pytree of (n, ...) arrays.
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
    masked = bool(tiling.groups > 1 or beyond)

    def split(x: jax.Array) -> jax.Array:
        return padded(x, tiles * tiling.tile).reshape(tiles, tiling.tile, *x.shape[1:])

    def join(x: jax.Array) -> jax.Array:
        return x.reshape(-1, *x.shape[2:])[: tiling.pairs]

    ids = own_rows(len(scaled_images))

    def body(
        carry: Any, tile: tuple[jax.Array, jax.Array, Any, jax.Array | None]
    ) -> tuple[Any, tuple[Any, jax.Array]]:
        start, texts, columns, logits = tile
        texts_ids = start + jnp.arange(tiling.tile)
        block = make_block(tiling, scaled_images, texts, ids, texts_ids, masked, logits)
        carry, visited = visit(carry, block, rows, columns)
        return carry, (visited, block.logits)

    def rest(carry: Any, tile: tuple[jax.Array, jax.Array, Any]) -> tuple[Any, Any]:
        carry, (visited, _) = body(carry, (*tile, None))
        return carry, visited

    starts = jnp.arange(tiles) * tiling.tile
    tiled = (starts, split(all_texts), jax.tree.map(split, columns))
    first = jax.tree.map(lambda x: x[: tiling.kept], tiled)
    others = jax.tree.map(lambda x: x[tiling.kept :], tiled)
    carry, (visited, kept) = lax.scan(body, varying(carry), (*first, kept))
    carry, visited_others = lax.scan(rest, carry, others)
    joined = jax.tree.map(lambda *x: join(jnp.concatenate(x)), visited, visited_others)
    return carry, joined, kept


def padded(x: jax.Array, size: int) -> jax.Array:
    """Adds zeros after the last row of x (n, ...), up to `size` rows."""
    return jnp.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1))


def varying(tree: Any) -> Any:
    """Lets the copies of a pytree of arrays differ between devices, for a carry."""
    return jax.tree.map(lambda x: lax.pcast(x, BATCH_AXES, to="varying"), tree)


def own_rows(n: int) -> jax.Array:
    """Returns the global indices (n,) of this device's pairs."""
    return lax.axis_index(BATCH_AXES) * n + jnp.arange(n)


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
      best_image: (n,) best logit of each text with another pair's image.
      temperature: () divisor of the logits.

    Returns:
      "i2t_accuracy" and "t2i_accuracy", () each, over all pairs of all devices.
    """
    least = positive - MARGIN / temperature
    return {
        "i2t_accuracy": mean_over_pairs(least > best_text),
        "t2i_accuracy": mean_over_pairs(least > best_image),
    }
