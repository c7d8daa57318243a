"""Gives every test eight fake CPU devices, before JAX starts."""

import gc
import importlib.metadata
import os

os.environ["JAX_PLATFORMS"] = "cpu"
# The compiler's last passes take more time here than they save.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
# Later compilers do not know this flag and refuse to start with it.
os.environ["XLA_FLAGS"] += (
    " --xla_cpu_use_fusion_emitters=false"
    if importlib.metadata.version("jaxlib").startswith("0.10.")
    else ""
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Threads of BLAS wait in a loop, and two workers have two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest
from jax.sharding import Mesh

from align_jax.devices.compiling import ONCE_OPTIONS
from align_jax.devices.mesh import make_mesh

jax.config.update("jax_numpy_rank_promotion", "raise")
ONCE_OPTIONS["cpu"] = {"xla_backend_optimization_level": 0}


# Files of half a minute or more. The others fill the time at the end, so that the
# workers of `make test` end together.
LONGEST = (
    "processes_test.py",
    "quickstart_test.py",
    "recipes_test.py",
    "train_step_test.py",
    "tower_forms_test.py",
    "broken_formats_test.py",
    "linear_classifier_test.py",
    "corpus_test.py",
)


def pytest_collection_modifyitems(items):
    """Puts the longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish():
    """Hides imported objects from the garbage collector, which JAX often calls."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


# Rooms whose operations must not change a type implicitly. Optax's schedules do it, so
# the rooms that train are not among them.
STRICT_ROOMS = ("kernels", "losses", "models")


@pytest.fixture(scope="module", autouse=True)
def strict_types(request):
    """Forbids implicit changes of type in the strict rooms."""
    mode = "strict" if request.path.parent.name in STRICT_ROOMS else "standard"
    with jax.numpy_dtype_promotion(mode):
        yield


@pytest.fixture
def mixed_types():
    """Allows implicit changes of type in a test of a strict room.

    Optax's schedules and JAX's attention in bfloat16 need them.
    """
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Shares compiled programs among all tests and workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = str(shared / "compilation_cache")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def mesh_of():
    """A function that makes a mesh of the first n devices, in slices of equal size."""

    def make(devices: int, fsdp: int = 1, slices: int = 1) -> Mesh:
        numbers = [i * slices // devices for i in range(devices)]
        return make_mesh(fsdp, jax.devices()[:devices], numbers)

    return make
