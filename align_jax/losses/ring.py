"""Contrastive objectives by a ring of devices, in memory linear in a device's pairs.

A device keeps its n images. The n texts of each device move on to the next device after
each step, and so do the results of their columns so far. Both are home again after as
many steps as there are devices (Inf-CLIP, arXiv 2410.17243; Ring Attention, arXiv
2310.01889). A step first sends for the texts of the next step and for the earlier
results of the texts that are here. Then it computes logits, and joins both results at
the end. So a device computes while these arrays move.

With S slices of P devices, a ring of P steps inside each slice runs S times. Meanwhile,
each device passes the texts that it began with to the device at its place in the next
slice. So each text enters a slice once, and has a whole round to do it.

A step cuts its logits (n, n) into blocks of R rows and T columns, whose results are
written in place. A device holds, beside its images and their gradients, a few copies of
its texts and of their results, and one block.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from align_jax.devices.mesh import INNER_AXES, SLICE_AXIS
from align_jax.losses.tiles import Tiling, own_rows, padded, varying

Kept = Any  # pytree of logits, or None


class Part(NamedTuple):
    """Consecutive rows or columns of the logits.

    Attributes:
      ids: (t,) indices among all N pairs; -1 for padding.
      arrays: pytree of (t, ...) arrays, with zeros for padding.
    """

    ids: jax.Array
    arrays: Any


# Function of (carry, rows, columns, kept logits or None), which returns (carry, results
# of the columns over the rows, logits to keep).
Compute = Callable[[Any, Part, Part, Kept], tuple[Any, Any, Kept]]
# Function that joins two results of the same columns over different rows.
Join = Callable[[Any, Any], Any]


class State(NamedTuple):
    """The arrays that a device holds in a step of a ring.

    Attributes:
      columns: pytree of arrays of the columns of some device.
      carry: pytree of arrays of this device's rows.
      found: results of the columns.
    """

    columns: Any
    carry: Any
    found: Any


# Function of (whether to keep logits, number of the device or slice whose texts are
# here, state, kept logits), which returns (carry, results, logits to keep).
Step = Callable[[bool, jax.Array, State, Kept], tuple[Any, Any, Kept]]


def ring(
    tiling: Tiling,
    compute: Compute,
    *,
    rows: Any,
    columns: Any,
    carry: Any,
    start: Any,
    join: Join,
    kept: Kept = None,
) -> tuple[Any, Any, Kept]:
    """Computes with this device's rows and the columns of all devices, in blocks.

    Args:
      tiling: division of the logits into blocks.
      compute: function that computes one block.
      rows: pytree of (n, ...) arrays of this device's rows.
      columns: pytree of (n, ...) arrays of this device's columns.
      carry: pytree of (n, ...) arrays, of which `compute` updates a block's rows.
      start: pytree of (n, ...) arrays: results of columns without any row.
      join: function that joins two results of the same columns.
      kept: logits that an earlier call returned for the same embeddings, or None.

    Returns:
      The last carry, (n, ...); the results of this device's columns over the rows of
      all devices, (n, ...); and kept logits, (S, `tiling.kept_steps`, row blocks,
      `tiling.kept`, R, T).
    """
    n, mesh = tiling.own_pairs, tiling.mesh
    row_blocks, column_blocks = tiling.blocks
    slices = mesh.shape[SLICE_AXIS]
    inner = mesh.size // slices

    def split_rows(x: jax.Array) -> jax.Array:
        x = padded(x, row_blocks * tiling.rows)
        return x.reshape(row_blocks, tiling.rows, *x.shape[1:])

    def pad_columns(x: jax.Array) -> jax.Array:
        return padded(x, column_blocks * tiling.tile)

    places = split_rows(own_rows(n) + 1) - 1  # zeros of the padding become -1
    row_parts = Part(places, jax.tree.map(split_rows, rows))
    blocks = _Blocks(tiling, compute, join)
    inside = _Ring(INNER_AXES, inner, tiling.kept_steps, join)
    between = _Ring((SLICE_AXIS,), slices, slices, join)

    def visit_device(
        number: jax.Array, keep: bool, device: jax.Array, state: State, kept: Kept
    ) -> tuple[Any, Any, Kept]:
        first = (number * inner + device) * n
        ids = pad_columns(first + jnp.arange(n) + 1) - 1
        columns = Part(ids, state.columns)
        return blocks.visit(keep, row_parts, columns, state.carry, state.found, kept)

    def visit_slice(
        keep: bool, number: jax.Array, state: State, kept: Kept
    ) -> tuple[Any, Any, Kept]:
        return inside.turn(partial(visit_device, number), state, kept)

    state = State(
        jax.tree.map(pad_columns, columns),
        varying(jax.tree.map(split_rows, carry)),
        varying(jax.tree.map(pad_columns, start)),
    )
    kept = kept if tiling.kept_steps else None
    carry, found, kept = between.turn(visit_slice, state, kept)
    carry = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], carry)
    return carry, jax.tree.map(lambda x: x[:n], found), kept


@dataclasses.dataclass(frozen=True)
class _Ring:
    """A ring of devices along axes of the mesh.

    Attributes:
      axes: axes of the mesh.
      size: number of devices on them.
      kept_steps: number of the first steps that return logits to keep, or get those
        that were kept.
      join: function that joins two results of the same columns.
    """

    axes: tuple[str, ...]
    size: int
    kept_steps: int
    join: Join

    def move(self, tree: Any) -> Any:
        """Moves a pytree of arrays on to the next device."""
        moves = [(i, (i - 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axes, moves), tree)

    def turn(self, visit: Step, state: State, kept: Kept) -> tuple[Any, Any, Kept]:
        """Passes columns and their results around the ring once.

        Args:
          visit: function that computes a step, from the results of `state`.
          state: columns of this device, carry, and results without any row.
          kept: kept logits, with an axis of `kept_steps`, or None.

        Returns:
          The carry, the results of this device's columns, and logits to keep.
        """
        start, own = state.found, lax.axis_index(self.axes)
        if self.size == 1:
            kept = jax.tree.map(lambda x: x[0], kept)
            carry, found, kept = visit(self.kept_steps > 0, own, state, kept)
            return carry, found, jax.tree.map(lambda x: x[None], kept)

        def step(
            keep: bool, state: State, this: tuple[jax.Array, Kept]
        ) -> tuple[State, Kept]:
            number, kept = this
            next_columns, earlier = self.move(state.columns), self.move(state.found)
            device = (own + number) % self.size
            state = state._replace(found=start)
            carry, found, kept = visit(keep, device, state, kept)
            state = State(next_columns, carry, self.join(earlier, found))
            return state, kept if keep else None

        numbers, count = jnp.arange(self.size), self.kept_steps
        if count:
            state, kept = lax.scan(partial(step, True), state, (numbers[:count], kept))
        if count < self.size:
            state, _ = lax.scan(partial(step, False), state, (numbers[count:], None))
        return state.carry, self.move(state.found), kept


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """The blocks of this device's rows and one device's columns, see `ring`."""

    tiling: Tiling
    compute: Compute
    join: Join

    def visit(
        self, keep: bool, rows: Part, columns: Part, carry: Any, found: Any, kept: Kept
    ) -> tuple[Any, Any, Kept]:
        """Computes all blocks, and updates carry and results.

        Args:
          keep: whether to keep logits, or to use those that were kept.
          rows: rows by blocks, (row blocks, R, ...).
          columns: columns.
          carry: pytree of (row blocks, R, ...) arrays.
          found: results of the columns so far.
          kept: kept logits (row blocks, `tiling.kept`, R, T), or None.
        """

        def visit_rows(
            state: tuple[Any, Any], this: tuple[jax.Array, Part, Kept]
        ) -> tuple[tuple[Any, Any], Kept]:
            (carry, found), (number, rows, kept) = state, this
            part = jax.tree.map(lambda x: x[0], _cut(carry, number, 1))
            part, found, kept = self._visit_tiles(
                keep, rows, columns, part, found, kept
            )
            part = jax.tree.map(lambda x: x[None], part)
            return (_put(carry, part, number), found), kept if keep else None

        steps = (jnp.arange(self.tiling.blocks[0]), rows, kept)
        (carry, found), kept = lax.scan(visit_rows, (carry, found), steps)
        return carry, found, kept

    def _visit_tiles(
        self, keep: bool, rows: Part, columns: Part, carry: Any, found: Any, kept: Kept
    ) -> tuple[Any, Any, Kept]:
        """Does the work of `visit` for one block of rows, tile by tile."""

        def visit_tile(
            state: tuple[Any, Any], this: tuple[jax.Array, Kept]
        ) -> tuple[tuple[Any, Any], Kept]:
            (carry, found), (number, logits) = state, this
            first, size = number * self.tiling.tile, self.tiling.tile
            here = _cut(columns, first, size)
            carry, new, logits = self.compute(carry, rows, here, logits)
            joined = self.join(_cut(found, first, size), new)
            return (carry, _put(found, joined, first)), logits

        def visit_rest(
            state: tuple[Any, Any], number: jax.Array
        ) -> tuple[tuple[Any, Any], None]:
            return visit_tile(state, (number, None))[0], None

        state, tiles = (carry, found), jnp.arange(self.tiling.blocks[1])
        count = self.tiling.kept if keep else 0
        if count:
            state, kept = lax.scan(visit_tile, state, (tiles[:count], kept))
        if count < len(tiles):
            state, _ = lax.scan(visit_rest, state, tiles[count:])
        return *state, kept


def _cut(tree: Any, first: jax.Array, size: int) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, size), tree)


def _put(tree: Any, part: Any, first: jax.Array) -> Any:
    def put(x: jax.Array, part: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(x, part, first, 0)

    return jax.tree.map(put, tree, part)
