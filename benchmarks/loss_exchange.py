"""Memory, time and traffic of the loss by a gather of all texts and by a ring.

    python -m benchmarks.loss_exchange --size 16384
    python -m benchmarks.loss_exchange --size 65536 --repeats 0
    python -m benchmarks.loss_exchange --size 16777216 --plan=v5e:16x16

It compiles the contrastive loss and all gradients, with label smoothing 0.1, for CPU
devices of this machine, for TPU slices or for one H100 (`--plan=h100`) that need not
exist. Memory is that of one device, as the compiler counts it. Programs for this
machine's devices are timed; the two forms take turns, and milliseconds are medians.
"""

import argparse
import os
import statistics

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax

from align_jax.devices.collectives import count_collectives
from align_jax.devices.mesh import batch_split, make_mesh, replicated, slices_of
from align_jax.errors import one_line
from align_jax.losses.tiles import EXCHANGES
from benchmarks.loss import lower_gradient, make_arguments, take_turns

GIB = 2**30
HEADER = (
    "exchange  inputs, gradients GiB  beside GiB      ms  communication of a device"
)


def make_devices(flags: argparse.Namespace) -> list[jax.Device]:
    """Returns the devices to compile for."""
    if not flags.plan:
        return jax.devices()[: flags.devices]
    # These import the training step, which takes seconds.
    if flags.plan != "h100":
        from align_jax.plan import find_devices

        return find_devices(flags.plan)
    from benchmarks.ahead import make_h100

    return [*make_h100().devices.flat]


def time_programs(
    programs: dict[str, jax.stages.Compiled],
    mesh: jax.sharding.Mesh,
    flags: argparse.Namespace,
) -> dict[str, float]:
    """Returns the median milliseconds of each program, which run in turns."""
    rows, whole = batch_split(mesh), replicated(mesh)
    arguments = jax.device_put(
        make_arguments(flags.size, flags.width), (rows, rows, whole)
    )
    taken = take_turns(programs, arguments, flags.repeats)
    return {name: statistics.median(times) for name, times in taken.items()}


def describe(
    name: str, program: jax.stages.Compiled, mesh: jax.sharding.Mesh, time: float | None
) -> str:
    """Returns a program's needs as a row of the table."""
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    found = count_collectives(str(program.as_text()), slices_of(mesh))
    traffic = ", ".join(
        f"{count.operations} {kind} of {count.size / 2**20:.1f} MiB"
        for kind, count in found.items()
    )
    milliseconds = "-" if time is None else f"{time:.0f}"
    return (
        f"{name:<9}{held / GIB:>22.2f}{memory.temp_size_in_bytes / GIB:>12.2f}"
        f"{milliseconds:>8}  {traffic}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=16384, help="N on all devices")
    parser.add_argument("--width", type=int, default=640, help="D, 640 for B7")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--plan", help="TPU slices as v5e:16x16, or h100")
    parser.add_argument("--only", choices=EXCHANGES)
    parser.add_argument("--precision", default="default")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="0 only compiles")
    flags = parser.parse_args()
    mesh = make_mesh(devices=make_devices(flags))
    kind = mesh.devices.flat[0].device_kind
    print(f"N = {flags.size}, D = {flags.width}, {mesh.size} x {kind}")
    print(HEADER)
    programs = {}
    for exchange in [flags.only] if flags.only else EXCHANGES:
        try:
            programs[exchange] = lower_gradient(exchange, mesh, flags).compile()
        except jax.errors.JaxRuntimeError as error:  # the memory is too small
            print(f"{exchange:<9}{one_line(error)[:300]}")
    times: dict[str, float] = {}
    if flags.repeats and not flags.plan:
        times = time_programs(programs, mesh, flags)
    for name, program in programs.items():
        print(describe(name, program, mesh, times.get(name)), flush=True)
    if len(times) > 1:
        print(f"ring / gather: {times['ring'] / times['gather']:.3f}")


if __name__ == "__main__":
    main()
