"""The device mesh and how arrays lie on it.

Everything with a batch axis is split over all devices. The state (parameters, moments,
moving average) is split over the `fsdp` axis by one rule, `state_sharding`, and whole
where that axis is 1; a block's parameters are gathered where they are used.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from align_jax.errors import InputError

FSDP_AXIS = "fsdp"
BATCH_AXES = ("data", FSDP_AXIS)  # the batch is split over both

SMALL = 2**14  # numbers; a smaller array is kept whole, its gathering would cost more


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of devices / fsdp times fsdp.

    The axis types are Auto: under Explicit axes, `jax.make_mesh`'s default, Linen's
    Embed and Dropout raise.

    Args:
      fsdp: devices that hold one state together.
      devices: by default all there are.

    Raises:
      InputError: the devices do not divide.
    """
    count = len(devices or jax.devices())
    if fsdp < 1 or count % fsdp:
        raise InputError(
            f"config.fsdp is {fsdp}, which does not divide {count} devices"
        )
    types = (AxisType.Auto,) * 2
    return jax.make_mesh((count // fsdp, fsdp), BATCH_AXES, types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_split(mesh: Mesh) -> NamedSharding:
    """The first axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def state_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """How an array of the state lies: its largest axis that divides is split.

    The optimizer's moments and the moving average have their parameters' shapes, so
    they lie as these do.
    """
    parts = mesh.shape[FSDP_AXIS]
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or np.prod(shape) < SMALL or not fitting:
        return replicated(mesh)
    largest = max(fitting, key=lambda axis: shape[axis])  # the first of equal ones
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, FSDP_AXIS))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a model's arrays lie while its parameters are split over `fsdp`.

    Left alone, the partitioner splits activations as parameters are split, and on the
    paper's model that took three times the memory of no splitting at all.
    """

    mesh: Mesh

    def gather(self, params: Any) -> Any:
        """Whole parameters; their gradients are summed into parts, never whole."""
        return jax.tree.map(partial(_gather, mesh=self.mesh), params)

    def split(self, x: jax.Array) -> jax.Array:
        """Activations (B, ...) split by the batch."""
        return lax.with_sharding_constraint(x, batch_split(self.mesh))


def _gather(x: jax.Array, mesh: Mesh) -> jax.Array:
    @jax.custom_vjp
    def gather(x):
        return lax.with_sharding_constraint(x, replicated(mesh))

    def backward(_, gradient):
        sharding = state_sharding(gradient.shape, mesh)
        return (lax.with_sharding_constraint(gradient, sharding),)

    gather.defvjp(lambda x: (gather(x), None), backward)
    return gather(x)


def place_array(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process has on the devices."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def global_batch(batch: dict, mesh: Mesh) -> dict:
    """Joins each process's rows of a batch (dict of numpy arrays) to global arrays."""
    sharding = batch_split(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def global_batches(
    batches: Iterator[dict], mesh: Mesh, ahead: int = 1
) -> Iterator[dict]:
    """Joins batches while the devices are at work on the ones before.

    The copy of a batch to the devices begins `ahead` batches before it is needed, so
    that `ahead` + 1 of them lie there at a time.
    """
    waiting: collections.deque[dict] = collections.deque()
    for batch in batches:
        waiting.append(global_batch(batch, mesh))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
