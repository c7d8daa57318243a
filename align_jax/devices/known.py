"""Memory and arithmetic speed of TPUs and GPUs."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """One device as JAX counts them: a core on TPU v2 and v3, a chip elsewhere.

    Attributes:
      memory_gib: memory of the device, GiB.
      peak_flops: multiplications and additions a second on dense bfloat16 matrices.
    """

    memory_gib: int
    peak_flops: float


# Keyed by `jax.Device.device_kind`. The values are from Cloud TPU's pages on system
# architecture and from NVIDIA's data sheets.
DEVICES = {
    "TPU v2": Device(8, 22.5e12),
    "TPU v3": Device(16, 61.5e12),
    "TPU v4": Device(32, 275e12),
    "TPU v5 lite": Device(16, 197e12),
    "TPU v5": Device(95, 459e12),
    "TPU v6 lite": Device(32, 918e12),
    "NVIDIA A100-SXM4-40GB": Device(40, 312e12),
    "NVIDIA A100-SXM4-80GB": Device(80, 312e12),
    "NVIDIA H100 80GB HBM3": Device(80, 989e12),
    "NVIDIA H200": Device(141, 989e12),
}
