"""Eight fake CPU devices for every test, set before JAX starts."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# The compiler's last passes cost more time here than what they speed up.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest
from jax.sharding import Mesh

from align_jax.sharding import make_mesh


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Tests that compile the same program compile it once."""
    folder = str(tmp_path_factory.mktemp("compilation_cache"))
    jax.config.update("jax_compilation_cache_dir", folder)


@pytest.fixture(scope="session")
def mesh_of():
    """Makes a mesh of the first n devices."""

    def make(devices: int, fsdp: int = 1) -> Mesh:
        return make_mesh(fsdp, jax.devices()[:devices])

    return make
