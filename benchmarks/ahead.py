"""Compiles our step for a GPU on a machine without one, and times it on a GPU.

    python -m benchmarks.ahead compile b5.step --image=b5 --text=base --optimizer=adamw
    python -m benchmarks.ahead run b5.step

A step takes minutes to compile and seconds to load, so this saves time on a GPU that is
hired by the minute. Both commands need the same version of JAX with its CUDA plugin;
`compile` also needs `ptxas` (jax[cuda13] has it). The other flags are those of
`benchmarks.step`. The step is compiled for an H100; an H200 runs it, too.
`run --profile` sums the time of a step's kernels by type.
"""

import argparse
import lzma
import pickle
import time
from typing import Any

import jax
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from jax.experimental.topologies import get_topology_desc

from align_jax.devices.mesh import make_mesh
from align_jax.errors import InputError
from align_jax.training.compiled_step import compile_step
from align_jax.training.train_state import abstract_state, compile_create
from benchmarks import step
from benchmarks.step_flags import OURS, read_flags
from benchmarks.turns import wait_for_turn

# An H100 SXM as XLA describes it.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def make_h100() -> jax.sharding.Mesh:
    """Returns the mesh of an H100 that need not exist, to compile for."""
    jax.config.update("jax_platforms", "cpu")
    topology = get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    return make_mesh(devices=topology.devices)


def write_programs(
    path: str, programs: dict[str, jax.stages.Compiled], facts: dict[str, Any]
) -> None:
    """Writes compiled programs and facts about them, both by name."""
    saved = {name: serialize(program)[0] for name, program in programs.items()}
    with lzma.open(path, "wb", preset=1) as file:
        pickle.dump({"jax": jax.__version__} | facts | saved, file)


def read_programs(path: str) -> dict[str, Any]:
    """Reads what `write_programs` wrote, by name; programs are bytes.

    Raises:
      InputError: another version of JAX compiled them.
    """
    with lzma.open(path) as file:
        saved = pickle.load(file)
    if saved["jax"] != jax.__version__:
        raise InputError(
            f"{path} was compiled by jax {saved['jax']}, and this is jax"
            f" {jax.__version__}; wanted the same version"
        )
    return saved


def load_program(program: bytes, arguments: tuple, result: Any) -> jax.stages.Compiled:
    """Loads a program for the first device.

    Args:
      program: bytes of `read_programs`.
      arguments: pytree of the program's arguments, of any leaves.
      result: pytree of its result.
    """
    trees = map(jax.tree.structure, ((arguments, {}), result))
    return deserialize_and_load(program, *trees, execution_devices=jax.devices()[:1])


def compile_for(mesh: jax.sharding.Mesh, path: str, arguments: list[str]) -> None:
    """Compiles a step and its first state's program for a device, and writes both."""
    flags = read_flags(__doc__.splitlines()[0], arguments)
    plan, start = step.make_plan(flags, mesh), time.perf_counter()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled = compile_step(plan, step.batch_shapes(flags, mesh))
        seconds = time.perf_counter() - start
        create = compile_create(plan)
    created = time.perf_counter() - start - seconds
    _, metrics = compiled.out_tree.unflatten([0] * compiled.out_tree.num_leaves)
    facts = {
        "arguments": arguments,
        "metrics": metrics,
        "compile_seconds": seconds,
        "flops": step.count_work(flags, make_mesh()),
    }
    write_programs(path, {"step": compiled, "create": create}, facts)
    memory = compiled.memory_analysis()
    print(
        f"compiled in {seconds:.0f} s, the first state's program in {created:.0f} s;"
        f" {memory.temp_size_in_bytes / step.GIB:.1f} GiB of temporaries"
    )


def run(path: str, profile: bool, in_turn: bool = False) -> None:
    """Loads the programs that `compile_for` wrote and times the step.

    Args:
      path: file of the programs.
      profile: whether to sum the time of a step's kernels by type.
      in_turn: whether to wait after loading, before the first state is made.
    """
    saved = read_programs(path)
    arguments = [*saved["arguments"], f"--only={OURS}"]
    flags = read_flags(__doc__.splitlines()[0], arguments)
    flags.profile = profile
    plan = step.make_plan(flags, make_mesh())
    state, batch = abstract_state(plan), step.batch_shapes(flags, plan.mesh)
    create = load_program(saved["create"], (), state)
    compiled = load_program(saved["step"], (state, batch), (state, saved["metrics"]))
    if in_turn:
        wait_for_turn()
    facts = {name: saved[name] for name in ("compile_seconds", "flops")}
    step.measure(step.run_ours(plan, compiled, create(), flags, facts), flags)


def main() -> None:
    """Compiles or runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("compile", "run"))
    parser.add_argument("path")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--in_turn", action="store_true", help=argparse.SUPPRESS)
    flags, others = parser.parse_known_args()
    if flags.action == "compile":
        compile_for(make_h100(), flags.path, others)
    else:
        run(flags.path, flags.profile, flags.in_turn)


if __name__ == "__main__":
    main()
