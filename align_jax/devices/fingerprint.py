"""Describes everything besides a run's config that its compiled programs depend on."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
from typing import Any

import jax
from jax.sharding import Mesh

# Packages whose Python code decides what a traced program computes.
TRACED = ("align_jax", "flax", "jax", "optax")
# Beginnings of the names of packages with compilers and compiled kernels.
COMPILERS = ("jax", "libtpu", "ml_dtypes", "numpy", "nvidia")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# Beginnings of the names of JAX's options that change no program.
IRRELEVANT = (
    "jax_compilation_cache",
    "jax_enable_compilation_cache",
    "jax_log",
    "jax_persistent_cache",
)


def describe_compiler(mesh: Mesh) -> dict[str, Any]:
    """Describes the code, compiler, options and devices of programs for a mesh.

    If two processes get equal descriptions, and trace the same functions with the same
    config, they trace and compile the same programs. So a program can be loaded without
    being traced. Traced code is compared by the hash of its source files.

    Args:
      mesh: devices that the programs run on.

    Returns:
      A JSON object, which is the same in every process of a run on equal machines.
    """
    devices = mesh.devices.flat
    description: dict[str, Any] = {
        "python": platform.python_version(),
        "sources": loaded_sources(),
        "packages": [
            package
            for package in _installed_packages()
            if package.lower().startswith(COMPILERS)
        ],
        "compiler": devices[0].client.platform_version,
        "flags": {name: os.environ.get(name, "") for name in FLAGS},
        "options": {
            name: str(value)
            for name, value in jax.config.values.items()
            if not name.startswith(IRRELEVANT)
        },
        "mesh": {str(axis): size for axis, size in mesh.shape.items()},
        "devices": [_describe_device(device) for device in devices],
    }
    if devices[0].platform == "cpu":
        description["processor"] = _describe_processor()
    return description


@functools.cache
def loaded_sources() -> str:
    """Returns `hash_sources` at the first call: a process keeps the code it loaded."""
    return hash_sources()


@functools.cache
def _installed_packages() -> list[str]:
    """Returns the installed packages as "name==version", sorted."""
    found = importlib.metadata.distributions()
    return sorted(f"{package.name}=={package.version}" for package in found)


def hash_sources() -> str:
    """Returns the SHA-256 of all Python files of the packages in `TRACED`."""
    total = hashlib.sha256()
    for package in TRACED:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for path in sorted(pathlib.Path(folder).rglob("*.py")):
                name = f"{package}/{path.relative_to(folder).as_posix()}"
                own = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{name} {own}\n".encode())
    return total.hexdigest()


def _describe_device(device: jax.Device) -> list:
    """Returns a device's type, number, process, slice and position in the slice."""
    names = ("slice_index", "coords", "core_on_chip")
    position = [str(getattr(device, name, None)) for name in names]
    return [device.device_kind, device.id, device.process_index, *position]


def _describe_processor() -> str:
    """Returns a hash of this machine's processor, its instructions and core count.

    XLA compiles for the instructions that the processor has, and splits work over its
    cores.
    """
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [f"model name: {platform.processor()}"]
    fields = ("model name", "flags", "Features")
    distinct = sorted({line for line in lines if line.startswith(fields)})
    text = "\n".join([platform.machine(), str(os.cpu_count()), *distinct])
    return hashlib.sha256(text.encode()).hexdigest()
