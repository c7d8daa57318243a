"""The device mesh and the sharding of arrays over it.

Arrays with a batch axis are split over all devices. The state (parameters, moments,
moving average) is split over the `fsdp` axis by one rule, `state_sharding`; if that
axis is 1, every device holds all of it. A block's parameters are gathered where they
are used.

A slice is a set of devices with fast links between them: a slice of a TPU pod, or the
GPUs of one node. A slower network joins several slices. They are the outermost axis of
the mesh, and each of them holds whole copies of the state.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from align_jax.errors import InputError

SLICE_AXIS, FSDP_AXIS = "slice", "fsdp"
INNER_AXES = ("data", FSDP_AXIS)  # inside a slice
BATCH_AXES = (SLICE_AXIS, *INNER_AXES)  # the batch is split over all

SMALL = 2**14  # elements; smaller arrays are not split, gathering them would cost more


def make_mesh(
    fsdp: int = 1,
    devices: Sequence[jax.Device] | None = None,
    slices: Sequence[int] | None = None,
) -> Mesh:
    """Makes a mesh of shape (slices, devices of a slice / fsdp, fsdp).

    The axes are `BATCH_AXES`. Their types are Auto: under Explicit axes, the default of
    JAX, Linen's Embed and Dropout raise.

    Args:
      fsdp: number of devices that one copy of the state is split over.
      devices: devices of the mesh; None for all.
      slices: number of the slice of each device; None for the devices' `slice_index`.
        JAX counts slices of TPU pods and nodes of GPUs by it, unless
        JAX_PARTITION_INDEX gives each process the number of its devices' slice.

    Raises:
      InputError: the number of devices of a slice is not a multiple of `fsdp`, `fsdp`
        is below 1, or slices have different numbers of devices.
    """
    devices = devices or jax.devices()
    if slices is None:
        slices = [getattr(device, "slice_index", 0) for device in devices]
    groups: dict[int, list[jax.Device]] = collections.defaultdict(list)
    for device, number in zip(devices, slices, strict=True):
        groups[number].append(device)
    sizes = {number: len(groups[number]) for number in sorted(groups)}
    count = max(sizes.values())
    if count * len(sizes) != len(devices):
        raise InputError(
            f"the slices {[*sizes]} have {[*sizes.values()]} devices; wanted as many in"
            " each"
        )
    if fsdp < 1 or count % fsdp:
        where = " of a slice; a state is split inside a slice" if len(sizes) > 1 else ""
        raise InputError(
            f"config.fsdp is {fsdp}, which does not divide {count} devices{where}"
        )
    shape = (count // fsdp, fsdp)
    places = [
        create_device_mesh(shape, groups[number], allow_split_physical_axes=True)
        for number in sizes
    ]
    # A process reads neighbouring rows of the batch, so its devices must be neighbours.
    ordered = [sorted(part.flat, key=lambda d: d.process_index) for part in places]
    grid = np.array(ordered).reshape(len(sizes), *shape)
    return Mesh(grid, BATCH_AXES, (AxisType.Auto,) * 3)


def batch_position(mesh: Mesh) -> int:
    """Returns the place of this process's rows among those of all processes, from 0."""
    order = dict.fromkeys(device.process_index for device in mesh.devices.flat)
    return [*order].index(jax.process_index())


def slices_of(mesh: Mesh) -> np.ndarray:
    """Returns the number of the slice of each device of a mesh, in the mesh's order."""
    return np.repeat(np.arange(mesh.shape[SLICE_AXIS]), mesh.devices[0].size)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding in which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_split(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def state_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array of the state, which depends on its shape only.

    The largest axis whose size is a multiple of the mesh's `fsdp` axis is split. Arrays
    of fewer than `SMALL` elements, and arrays without that axis, stay whole. The
    optimizer's moments and the moving average have their parameters' shapes and
    therefore the same sharding.
    """
    parts = mesh.shape[FSDP_AXIS]
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or np.prod(shape) < SMALL or not fitting:
        return replicated(mesh)
    largest = max(fitting, key=lambda axis: shape[axis])  # the first of equal axes
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, FSDP_AXIS))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Prescribes a model's shardings while its parameters are split over `fsdp`.

    Without these prescriptions, the partitioner splits activations as it splits
    parameters. On the model of ALIGN's paper (arXiv 2102.05918) that took three times
    the memory of no splitting at all.
    """

    mesh: Mesh

    def gather(self, params: Any) -> Any:
        """Returns a tree of parameters, whole on every device.

        Their gradients are summed over the devices and split by `state_sharding`.
        """
        return jax.tree.map(partial(_gather, mesh=self.mesh), params)

    def split(self, x: jax.Array) -> jax.Array:
        """Splits activations (B, ...) over all devices by their first axis."""
        return lax.with_sharding_constraint(x, batch_split(self.mesh))


def _gather(x: jax.Array, mesh: Mesh) -> jax.Array:
    @jax.custom_vjp
    def gather(x: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(x, replicated(mesh))

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        sharding = state_sharding(gradient.shape, mesh)
        return (lax.with_sharding_constraint(gradient, sharding),)

    gather.defvjp(lambda x: (gather(x), None), backward)
    return gather(x)


def place_array(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process holds on the devices, with a sharding."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def global_batch(batch: dict, mesh: Mesh) -> dict:
    """Joins every process's rows of a batch (dict of numpy arrays) to global arrays.

    The global arrays have the same names and are split by `batch_split`.
    """
    sharding = batch_split(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def global_batches(
    batches: Iterator[dict], mesh: Mesh, ahead: int = 1
) -> Iterator[dict]:
    """Yields the `global_batch` of each batch, and copies later ones meanwhile.

    The copy of a batch begins `ahead` batches before the batch is used, so the devices
    hold `ahead` + 1 batches at a time.
    """
    waiting: collections.deque[dict] = collections.deque()
    for batch in batches:
        waiting.append(global_batch(batch, mesh))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
