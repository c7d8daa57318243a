"""Cuts a batch into parts that the devices compute one after the other."""

from typing import TypeVar

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from align_jax.devices.mesh import BATCH_AXES, batch_split

Tree = TypeVar("Tree")  # any tree of arrays


def split_parts(tree: Tree, parts: int, mesh: Mesh) -> Tree:
    """Reshapes (B, ...) to (parts, B / parts, ...).

    Each part takes an equal part of every device's share of the batch.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def split(x: jax.Array) -> jax.Array:
        cut = x.reshape(mesh.size, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        cut = cut.reshape(parts, -1, *x.shape[1:])
        return lax.with_sharding_constraint(cut, sharding)

    return jax.tree.map(split, tree)


def join_parts(tree: Tree, parts: int, mesh: Mesh) -> Tree:
    """Reshapes (parts, B / parts, ...) to (B, ...); undoes `split_parts`."""

    def join(x: jax.Array) -> jax.Array:
        cut = x.reshape(parts, mesh.size, -1, *x.shape[2:]).swapaxes(0, 1)
        whole = cut.reshape(-1, *x.shape[2:])
        return lax.with_sharding_constraint(whole, batch_split(mesh))

    return jax.tree.map(join, tree)
