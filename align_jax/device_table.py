"""What accelerators can do, by the name that JAX gives a device.

Peak rates are of dense bfloat16 products as the vendors state them (Cloud TPU system
architecture pages; NVIDIA data sheets), memory is of one JAX device: a core on TPU v2
and v3, a chip elsewhere.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
      peak: floating-point operations a second, bfloat16.
      gibibytes: memory.
    """

    peak: float
    gibibytes: float


ACCELERATORS = {
    "TPU v2": Accelerator(22.5e12, 8),
    "TPU v3": Accelerator(61.5e12, 16),
    "TPU v4": Accelerator(275e12, 32),
    "TPU v5 lite": Accelerator(197e12, 16),
    "TPU v5": Accelerator(459e12, 95),
    "TPU v6 lite": Accelerator(918e12, 32),
    "NVIDIA A100-SXM4-40GB": Accelerator(312e12, 40),
    "NVIDIA A100-SXM4-80GB": Accelerator(312e12, 80),
    "NVIDIA H100 80GB HBM3": Accelerator(989e12, 80),
    "NVIDIA H200": Accelerator(989e12, 141),
}
