"""Ranks and nearest neighbours of embeddings, on all devices, in bounded memory.

The full matrix of scores is never stored; it is computed one block at a time.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from align_jax.devices.mesh import BATCH_AXES, batch_split, place_array, replicated

# Cosines that differ by less are ties, since float32 rounding of a product of 1,376
# numbers makes errors of this size.
ROUNDING = 2e-6
# Size of the block of scores on a device. `pair_ranks` reads its block twice more, so
# the block should fit into a processor's cache. `nearest` searches larger blocks.
SCORES_BYTES = 8 << 20
NEAREST_BYTES = 32 << 20
PAIRS = 1 << 16  # pairs whose cosines the host computes at a time


class Chunk(NamedTuple):
    """A chunk of rows, replicated on every device.

    Attributes:
      rows: (R, D) embeddings.
      best: (R,) cosine of each row's best right column; -inf if a row has none, inf for
        padding.
      real: (R,) bools, false for padding.
      known: (P, 2) row of this chunk and column among all, of the right and the
        excluded pairs; -1 for padding.
    """

    rows: jax.Array
    best: jax.Array
    real: jax.Array
    known: jax.Array


class Columns(NamedTuple):
    """All columns, split over the devices.

    Attributes:
      columns: (C, D) embeddings, padded with zeros to a multiple of the devices.
      best: (C,) cosine of each column's best right row; -inf if a column has none, inf
        for padding.
    """

    columns: jax.Array
    best: jax.Array


class Nearest(NamedTuple):
    """Each query's best candidates so far; the queries are split over the devices.

    Attributes:
      cosines: (Q, k) cosines, best first; -inf until k candidates were seen.
      indices: (Q, k) indices among all candidates, from 0.
    """

    cosines: jax.Array
    indices: jax.Array


def pair_ranks(
    rows: np.ndarray,
    columns: np.ndarray,
    pairs: np.ndarray,
    mesh: Mesh,
    excluded: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks each row's best right column, and each column's best right row.

    A rank is the number of wrong candidates whose cosine is at least that of the best
    right one; 0 is the top. Ties, up to `ROUNDING`, count against the model.

    Args:
      rows: (R, D) float32 embeddings of unit length, such as those of pictures.
      columns: (C, D) float32 embeddings of unit length, such as those of texts.
      pairs: (P, 2) row and column of every right pair, each once.
      mesh: the devices.
      excluded: (E, 2) row and column of pairs that are neither right nor wrong, each
        once and none of them in `pairs`.

    Returns:
      Ranks (R,) of the rows and (C,) of the columns; -1 without a right candidate.

    Raises:
      FloatingPointError: an embedding is not finite.
    """
    for name, found in (("row", rows), ("column", columns)):
        check_finite(found, name)
    count = len(columns)
    held = -(-count // mesh.size)  # columns of a device
    size = max(8, min(SCORES_BYTES // (4 * held), len(rows)))
    row_best, column_best = _best(rows, columns, pairs)
    known = pairs if excluded is None else np.concatenate([pairs, excluded])
    known = known[known[:, 0].argsort(kind="stable")]
    starts = np.arange(0, len(rows), size)
    bounds = np.searchsorted(known[:, 0], [*starts, len(rows)])
    most = int(np.diff(bounds).max())  # largest number of known pairs in a chunk

    split, whole = batch_split(mesh), replicated(mesh)
    width = held * mesh.size
    all_columns = Columns(
        place_array(_pad(columns, width, 0.0), split),
        place_array(_pad(column_best, width, np.inf), split),
    )
    column_hits = place_array(np.zeros(width, np.int32), split)
    compare = _make_compare(mesh, count)
    row_hits = []
    for i, start in enumerate(starts):
        chunk = rows[start : start + size]
        inside = known[bounds[i] : bounds[i + 1]] - [start, 0]
        host = (
            _pad(chunk, size, 0.0),
            _pad(row_best[start : start + size], size, np.inf),
            np.arange(size) < len(chunk),
            _pad(inside.astype(np.int32), most, -1),
        )
        placed = Chunk(*(place_array(array, whole) for array in host))
        hits, column_hits = compare(placed, all_columns, column_hits)
        row_hits.append(hits)
    row_ranks = np.concatenate([np.asarray(hits) for hits in row_hits])[: len(rows)]
    column_ranks = np.asarray(_gather(column_hits, mesh))[:count]
    return (
        np.where(np.isfinite(row_best), row_ranks, -1),
        np.where(np.isfinite(column_best), column_ranks, -1),
    )


def _best(
    rows: np.ndarray, columns: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best cosine among each row's right pairs, and among each column's.

    The result is a pair of arrays, (R,) and (C,); -inf stands for no right pair.
    """
    row_best = np.full(len(rows), -np.inf, np.float32)
    column_best = np.full(len(columns), -np.inf, np.float32)
    for start in range(0, len(pairs), PAIRS):
        i, j = pairs[start : start + PAIRS].T
        exact = np.einsum("pd,pd->p", rows[i], columns[j], dtype=np.float64)
        cosines = exact.astype(np.float32)
        np.maximum.at(row_best, i, cosines)
        np.maximum.at(column_best, j, cosines)
    return row_best, column_best


@lru_cache(maxsize=8)  # so that the function is compiled once
def _make_compare(mesh: Mesh, count: int) -> jax.stages.Wrapped:
    """Makes the function that compares a chunk of rows with all `count` columns.

    The function returns the ranks (R,) of the chunk's rows, and `column_hits` (C,) plus
    the number of the chunk's wrong rows that count in each column's rank.
    """
    split = PartitionSpec(BATCH_AXES)

    def compare(
        chunk: Chunk, all_columns: Columns, column_hits: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        rows, row_best, real, known = chunk
        columns, column_best = all_columns
        scores = jnp.matmul(rows, columns.T, precision=lax.Precision.HIGHEST)
        first = lax.axis_index(BATCH_AXES) * len(columns)
        indices = first + jnp.arange(len(columns))
        counted = real[:, None] & (indices < count)[None]
        row_floor, column_floor = row_best - ROUNDING, column_best - ROUNDING
        row_hits = (counted & (scores >= row_floor[:, None])).sum(1)
        new_hits = (counted & (scores >= column_floor[None])).sum(0)
        # The counts include right and excluded pairs; these are subtracted again.
        i, j = known[:, 0], known[:, 1] - first
        held = (known[:, 1] >= 0) & (j >= 0) & (j < len(columns))
        i, j = jnp.where(held, i, len(rows)), jnp.where(held, j, len(columns))
        cosines = scores.at[i, j].get(mode="fill", fill_value=-jnp.inf)
        of_row = cosines >= row_floor.at[i].get(mode="fill", fill_value=jnp.inf)
        of_column = cosines >= column_floor.at[j].get(mode="fill", fill_value=jnp.inf)
        row_hits = row_hits.at[i].add(-of_row.astype(jnp.int32), mode="drop")
        new_hits = new_hits.at[j].add(-of_column.astype(jnp.int32), mode="drop")
        return lax.psum(row_hits, BATCH_AXES), column_hits + new_hits

    here = PartitionSpec()
    sharded = jax.shard_map(
        compare,
        mesh=mesh,
        in_specs=(here, split, split),
        out_specs=(here, split),
    )
    return jax.jit(sharded, donate_argnums=2)


def nearest(
    queries: np.ndarray,
    candidates: Iterable[np.ndarray],
    k: int,
    mesh: Mesh,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds each query's k candidates of highest cosine, best first.

    Args:
      queries: (Q, D) float32 embeddings of unit length.
      candidates: pieces (m, D) of float32 embeddings of unit length, of any size. They
        are used one after the other and need not fit into memory together.
      k: number of candidates to find for each query.
      mesh: the devices; the queries are split over them.

    Returns:
      Cosines (Q, k) and indices among all candidates (Q, k). In a tie, the earlier
      candidate comes first.

    Raises:
      FloatingPointError: an embedding is not finite.
      ValueError: fewer than k candidates.
    """
    check_finite(queries, "query")
    held = -(-len(queries) // mesh.size)
    width, split = held * mesh.size, batch_split(mesh)
    size = max(k, NEAREST_BYTES // (4 * max(held, queries.shape[1])))  # rows at a time
    all_queries = place_array(_pad(queries, width, 0.0), split)
    best = Nearest(
        place_array(np.full((width, k), -np.inf, np.float32), split),
        place_array(np.zeros((width, k), np.int32), split),
    )
    total = 0
    for piece in _pieces(candidates, size):
        check_finite(piece, "candidate", total)
        power = 1 << (len(piece) - 1).bit_length()  # so that few sizes are compiled
        rounded = min(size, max(k, power))
        padded = place_array(_pad(piece, rounded, 0.0), replicated(mesh))
        first, real = np.int32(total), np.int32(len(piece))
        best = _take_nearest(all_queries, padded, first, real, best)
        total += len(piece)
    if total < k:
        raise ValueError(f"{total} candidates; wanted at least {k}")
    cosines, found = (np.asarray(_gather(x, mesh)) for x in best)
    return cosines[: len(queries)], found[: len(queries)]


@partial(jax.jit, donate_argnums=4)
def _take_nearest(
    queries: jax.Array,
    candidates: jax.Array,
    first: jax.Array,
    real: jax.Array,
    best: Nearest,
) -> Nearest:
    """Returns `best` updated with a piece of new candidates (m, D); donates `best`.

    Row i of the piece is candidate `first` + i of all. Only the first `real` rows are
    candidates; the rest are padding.
    """
    k = best.cosines.shape[1]
    scores = jnp.matmul(queries, candidates.T, precision=lax.Precision.HIGHEST)
    scores = jnp.where(jnp.arange(len(candidates)) < real, scores, -jnp.inf)
    found, columns = lax.top_k(scores, k)
    both = jnp.concatenate([best.cosines, found], 1)
    both_indices = jnp.concatenate([best.indices, first + columns], 1)
    cosines, order = lax.top_k(both, k)
    return Nearest(cosines, jnp.take_along_axis(both_indices, order, 1))


def _pieces(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yields the rows of the chunks in pieces of `size`; the last may be smaller."""
    waiting: list[np.ndarray] = []
    rows = 0
    for chunk in chunks:
        waiting.append(np.asarray(chunk))
        rows += len(chunk)
        if rows >= size:
            joined = np.concatenate(waiting)
            ends = range(size, rows + 1, size)
            yield from (joined[end - size : end] for end in ends)
            waiting, rows = [joined[ends[-1] :]], rows - ends[-1]
    if rows:
        yield np.concatenate(waiting)


def check_finite(embeddings: np.ndarray, name: str, first: int = 0) -> None:
    """Raises FloatingPointError if any embedding has a number that is not finite.

    Args:
      embeddings: (N, D) embeddings.
      name: noun for an embedding in the message, such as "query".
      first: number that the message gives to the first row of `embeddings`.
    """
    good = np.isfinite(embeddings).all(1)
    if not good.all():
        raise FloatingPointError(
            f"{np.count_nonzero(~good)} of {len(good)} embeddings are not finite, the"
            f" first is {name} {first + int(good.argmin())}"
        )


def _pad(array: np.ndarray, size: int, value: float) -> np.ndarray:
    """Appends rows filled with `value` until the array has `size` rows."""
    rows = [(0, size - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return np.pad(array, rows, constant_values=value)


def _gather(array: jax.Array, mesh: Mesh) -> jax.Array:
    """Replicates a sharded array on all devices."""
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(array)
