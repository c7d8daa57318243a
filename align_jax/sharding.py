"""The device mesh and how arrays lie on it.

Parameters are replicated; everything with a batch axis is split over `data`.
"""

import collections
from collections.abc import Iterator

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh() -> Mesh:
    """Makes a one-axis mesh of all devices.

    The axis type is Auto: under Explicit axes, `jax.make_mesh`'s default, Linen's
    Embed and Dropout raise.
    """
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), (AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_split(mesh: Mesh) -> NamedSharding:
    """The first axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


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
