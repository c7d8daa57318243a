"""Memory and arithmetic speed of TPUs and GPUs."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """One device as JAX counts them.

    A chip of TPU v2, v3 and 7x has two cores, which are two devices. Elsewhere, a chip
    or a GPU is one device.

    Attributes:
      memory_gib: memory of the device, GiB.
      peak_flops: multiplications and additions a second on dense bfloat16 matrices.
    """

    memory_gib: int
    peak_flops: float


# Keyed by `jax.Device.device_kind`. TPUs: https://cloud.google.com/tpu/docs/v2 and the
# pages v3, v4, v5e, v5p, v6e and tpu7x beside it; their values of a chip are halved
# where a chip is two devices. GPUs: NVIDIA's data sheets of A100, H100, H200, DGX B200
# (a share of its eight GPUs), L4 and A10G (AWS's), without sparsity: where a sheet has
# only the speed with sparsity, half of it.
DEVICES = {
    "TPU v2": Device(8, 22.5e12),
    "TPU v3": Device(16, 61.5e12),
    "TPU v4": Device(32, 275e12),
    "TPU v5 lite": Device(16, 197e12),
    "TPU v5": Device(95, 459e12),
    "TPU v6 lite": Device(32, 918e12),
    "TPU7x": Device(96, 1153.5e12),
    "NVIDIA A100-SXM4-40GB": Device(40, 312e12),
    "NVIDIA A100-SXM4-80GB": Device(80, 312e12),
    "NVIDIA A100-PCIE-40GB": Device(40, 312e12),
    "NVIDIA A100 80GB PCIe": Device(80, 312e12),
    "NVIDIA H100 80GB HBM3": Device(80, 989e12),
    "NVIDIA H100 PCIe": Device(80, 756e12),
    "NVIDIA H100 NVL": Device(94, 835e12),
    "NVIDIA H200": Device(141, 989e12),
    "NVIDIA B200": Device(180, 2250e12),
    "NVIDIA L4": Device(24, 121e12),
    "NVIDIA A10G": Device(24, 70e12),
}
