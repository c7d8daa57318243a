"""Which program computes what has a kernel of its own beside its plain form."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from align_jax.devices.mesh import BATCH_AXES
from align_jax.errors import InputError

CHOICES = ("auto", "plain")
PLAIN, TRITON, INTERPRET, MOSAIC = "plain", "triton", "interpret", "mosaic"
TOWER_CHOICES = (*CHOICES, MOSAIC)


@dataclasses.dataclass(frozen=True)
class Kernels:
    """How a model's kernels run.

    Attributes:
      kind: "plain", for XLA's programs; "triton", for Pallas kernels on NVIDIA GPUs;
        "interpret", for the same on any device, to test them; or "mosaic", for TPUs'
        depthwise convolutions.
      mesh: the devices that the batch is split over; None for one.
    """

    kind: str = PLAIN
    mesh: Mesh | None = None

    @property
    def devices(self) -> int:
        """Over how many the batch is split."""
        return 1 if self.mesh is None else self.mesh.size

    def by_batch(
        self, function: Callable, split: Sequence[jax.Array], whole: Any = ()
    ) -> Any:
        """Calls function(*split, *whole) on every device's part of the batch.

        Args:
          function: returns a tree of arrays (B, ...).
          split: arrays (B, ...).
          whole: what every device has.
        """
        if self.devices == 1:
            return function(*split, *whole)
        rows = PartitionSpec(BATCH_AXES)
        call = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(rows,) * len(split) + (PartitionSpec(),) * len(whole),
            out_specs=rows,
            check_vma=False,  # a kernel's results do not say over what they vary
        )
        return call(*split, *whole)


def choose_kernels(choice: str, mesh: Mesh) -> Kernels:
    """The kernels of a run: Triton's where its devices have them, if `auto`.

    Args:
      choice: one of `TOWER_CHOICES`.
      mesh: the devices.

    Raises:
      InputError: it is "mosaic" and the devices are no TPUs.
    """
    device = mesh.devices.flat[0]
    if choice == MOSAIC:
        if device.platform != "tpu":
            raise InputError(
                f"image_tower.kernels is {choice!r}, which is for TPUs; the devices are"
                f" {device.device_kind!r}"
            )
        return Kernels(MOSAIC, mesh)
    capable = "NVIDIA" in device.device_kind and device.platform in ("gpu", "cuda")
    if choice == "auto" and capable and float(device.compute_capability) >= 8.0:
        return Kernels(TRITON, mesh)
    return Kernels(PLAIN, mesh)
