"""Compilation of programs with the options that each platform wants."""

from collections.abc import Mapping

import jax
from jax.sharding import Mesh

# CPUs: no sums by YNNPACK: its kernels have every number that is the same for many
# places written to memory for each of them, ones among them. GPUs: products as cuBLAS
# picks them, not by timing them, which takes minutes and may pick others the next time,
# with other last bits: a resumed run would not go on exactly (docs/performance.md).
COMPILER_OPTIONS = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}
# A program that runs once: it is compiled in half the time, to the same numbers.
ONCE_OPTIONS = {"cpu": {"xla_backend_optimization_level": 1}}


def compile_fast(
    lowered: jax.stages.Lowered, mesh: Mesh, options: Mapping = COMPILER_OPTIONS
) -> jax.stages.Compiled:
    """Compiles for a mesh with its platform's options, by default a step's."""
    try:
        return lowered.compile(options.get(mesh.devices.flat[0].platform))
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()  # by a compiler that knows an option no more
