"""Traces and compiles programs, with the compiler options of each platform."""

import contextlib
import gc
from collections.abc import Iterator, Mapping

import jax
from jax.sharding import Mesh

# On CPUs we turn YNNPACK reductions off: they materialise every broadcast operand, even
# constants. On GPUs cuBLAS picks the algorithms of matrix products, and XLA times none:
# timing takes minutes and may pick other algorithms at the next start, with other last
# bits, so that a resumed run would not continue exactly (docs/performance.md).
COMPILER_OPTIONS = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}
# For a program that runs once: it compiles in half the time and gives the same numbers.
ONCE_OPTIONS = {"cpu": {"xla_backend_optimization_level": 1}}


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Pauses Python's garbage collector, which takes a third of the time of a trace.

    A trace makes many objects and little garbage. The pause holds for all threads.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def compile_fast(
    lowered: jax.stages.Lowered, mesh: Mesh, options: Mapping = COMPILER_OPTIONS
) -> jax.stages.Compiled:
    """Compiles a program with the options of the mesh's platform.

    Options that the compiler lacks are left out.

    Args:
      lowered: the program.
      mesh: devices that the program runs on.
      options: compiler options by platform; the default is for training steps.
    """
    known = dict(options.get(mesh.devices.flat[0].platform, {}))
    while True:
        try:
            return lowered.compile(known or None)
        except jax.errors.JaxRuntimeError as error:
            lacking = [name for name in known if name in str(error)]
            if "No such compile option" not in str(error) or not lacking:
                raise
            for name in lacking:
                del known[name]
