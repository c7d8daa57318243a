"""Chooses between our Pallas kernels and plain XLA."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from align_jax.devices.mesh import BATCH_AXES

CHOICES = ("auto", "plain")
PLAIN, TRITON, INTERPRET = "plain", "triton", "interpret"


@dataclasses.dataclass(frozen=True)
class Kernels:
    """How a model's kernels run.

    Attributes:
      kind: "plain", for XLA's programs; "triton", for Pallas kernels on NVIDIA GPUs; or
        "interpret", for the same on any device, to test them.
      mesh: the devices that the batch is split over; None for one.
    """

    kind: str = PLAIN
    mesh: Mesh | None = None

    @property
    def devices(self) -> int:
        """Over how many the batch is split."""
        return 1 if self.mesh is None else self.mesh.size

    def by_batch(
        self, function: Callable[[Any, Any], Any], split: Any, whole: Any = None
    ) -> Any:
        """Calls function(split, whole) on every device's part of the batch.

        Args:
          function: returns a tree of arrays (B, ...).
          split: a tree of arrays (B, ...), of which a device gets its rows.
          whole: a tree of arrays that every device gets whole.
        """
        if self.devices == 1:
            return function(split, whole)
        rows = PartitionSpec(BATCH_AXES)
        call = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(rows, PartitionSpec()),
            out_specs=rows,
            check_vma=False,  # a kernel's results do not say over what they vary
        )
        return call(split, whole)


def choose_kernels(choice: str, mesh: Mesh) -> Kernels:
    """The kernels of a run: Triton's where its devices have them, if `auto`.

    Args:
      choice: one of `CHOICES`.
      mesh: the devices.
    """
    device = mesh.devices.flat[0]
    capable = "NVIDIA" in device.device_kind and device.platform in ("gpu", "cuda")
    if choice == "auto" and capable and float(device.compute_capability) >= 8.0:
        return Kernels(TRITON, mesh)
    return Kernels(PLAIN, mesh)
