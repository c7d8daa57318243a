"""Rows of arrays that are split over the devices, chosen by their global indices."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from align_jax.losses.exchange import scatter_sum
from align_jax.losses.tiles import ROWS, WHOLE, own_rows

# The rows that all devices receive at a time are at most this large, or one a device.
MOVED_BYTES = 64 * 2**20


def largest_divisor(number: int, most: int) -> int:
    """Returns the largest divisor of a number that is at most `most`, or 1."""
    return max(i for i in range(1, max(min(number, most), 1) + 1) if number % i == 0)


def own_part(x: jax.Array, indices: jax.Array) -> jax.Array:
    """Returns chosen rows of an array, with zeros for the rows of other devices.

    It runs under `shard_map`. The sum over all devices has all chosen rows.

    Args:
      x: (n, ...) rows of this device.
      indices: (k,) global indices of the chosen rows.

    Returns:
      (k, ...) rows.
    """
    n = len(x)
    local = indices - own_rows(n)[0]
    own = (local >= 0) & (local < n)
    rows = x[jnp.clip(local, 0, n - 1)]  # (k, ...)
    return jnp.where(own.reshape(-1, *[1] * (x.ndim - 1)), rows, jnp.zeros_like(rows))


def take_rows(x: jax.Array, indices: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns chosen rows of an array; both are split over the mesh by rows.

    Each device sends its chosen rows by a sum that is scattered over the devices, in
    tiles. A device passes on the bytes of about b rows, and receives b / devices rows.
    The tiles bound its memory.

    Args:
      x: (N, ...) array, split by rows.
      indices: (b,) global indices of rows; the devices divide b.
      mesh: mesh of the devices.

    Returns:
      (b, ...) rows in the order of the indices.
    """
    if mesh.size == 1:
        return x[indices]
    share = len(indices) // mesh.size  # rows that a device receives
    most = MOVED_BYTES // (mesh.size * x.dtype.itemsize * math.prod(x.shape[1:]))
    rows = largest_divisor(share, most)
    # A tile holds the next rows of every device, in the devices' order.
    tiles = indices.reshape(mesh.size, -1, rows).swapaxes(0, 1)
    tiles = tiles.reshape(-1, mesh.size * rows)

    def move(x: jax.Array, tiles: jax.Array) -> jax.Array:
        moved = lax.map(lambda tile: scatter_sum(own_part(x, tile)), tiles)
        return moved.reshape(share, *x.shape[1:])

    split = jax.shard_map(move, mesh=mesh, in_specs=(ROWS, WHOLE), out_specs=ROWS)
    return split(x, tiles)
