"""Chooses between our Pallas kernels and plain XLA."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from align_jax.devices.mesh import BATCH_AXES
from align_jax.errors import InputError

CHOICES = ("auto", "plain")
PLAIN, TRITON, INTERPRET = "plain", "triton", "interpret"
MOSAIC, MOSAIC_INTERPRET = "mosaic", "mosaic_interpret"
# Kinds of TPUs with 128 MiB of vector memory, which the kernels for TPUs need.
MOSAIC_DEVICES = ("TPU v5 lite", "TPU v6 lite")


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The implementation of a model's kernels, and the devices that run them.

    Attributes:
      kind: "plain" for XLA's programs, "triton" for Pallas kernels on NVIDIA GPUs,
        "mosaic" for those on TPUs, or "interpret" and "mosaic_interpret" for the same
        kernels on any device, in tests.
      mesh: devices that the batch is split over; None for one device.
    """

    kind: str = PLAIN
    mesh: Mesh | None = None

    @property
    def devices(self) -> int:
        """Number of devices that the batch is split over."""
        return 1 if self.mesh is None else self.mesh.size

    def by_batch(
        self, function: Callable[[Any, Any], Any], split: Any, whole: Any = None
    ) -> Any:
        """Calls function(split, whole) on every device with its rows of the batch.

        Args:
          function: function of two trees of arrays; its result is a tree of arrays
            (B, ...).
          split: tree of arrays (B, ...); a device gets its rows of each.
          whole: tree of arrays; every device gets all of each.
        """
        if self.devices == 1:
            return function(split, whole)
        rows = PartitionSpec(BATCH_AXES)
        call = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(rows, PartitionSpec()),
            out_specs=rows,
            check_vma=False,  # kernels do not declare over which axes they vary
        )
        return call(split, whole)


def choose_kernels(choice: str, mesh: Mesh) -> Kernels:
    """Chooses the kernels of a run.

    Args:
      choice: "auto" for Triton's kernels on NVIDIA GPUs from compute capability 8.0 on
        and plain ones elsewhere, "plain", or "mosaic" for the kernels for TPUs.
      mesh: devices of the run.

    Raises:
      InputError: "mosaic" on other devices than `MOSAIC_DEVICES`.
    """
    device = mesh.devices.flat[0]
    if choice == MOSAIC:
        if device.device_kind not in MOSAIC_DEVICES:
            raise InputError(
                f"config.model.image_tower.kernels is {MOSAIC!r}, which is for"
                f" {' and '.join(MOSAIC_DEVICES)}; the devices are"
                f" {device.device_kind!r}"
            )
        return Kernels(MOSAIC, mesh)
    capable = "NVIDIA" in device.device_kind and device.platform in ("gpu", "cuda")
    if choice == "auto" and capable and float(device.compute_capability) >= 8.0:
        return Kernels(TRITON, mesh)
    return Kernels(PLAIN, mesh)
