r"""A training step on random data, beside PyTorch's on the same device.

    python -m benchmarks.step --image=b5 --text=base --batch=128 --peers timm
    python -m benchmarks.step --image=b7 --text=base --batch=128 --peers huggingface
    python -m benchmarks.step --image=vit_b/16 --text=clip_b --image_size=224 \
        --tokens=77 --optimizer=adamw --peers open_clip

`benchmarks.step_towers` has the names of towers. A step is the forward pass, loss,
backward pass and optimizer in bfloat16. Each implementation runs in a separate process,
one after the other, so that none disturbs another's compiler. The peers need torch and
their packages: timm's EfficientNet with Hugging Face's BERT, Hugging Face's AlignModel,
and OpenCLIP's CLIP with a ViT, compiled as a whole or, with `_eager`, not at all;
AlignModel also by blocks. `ratio` is the median time relative to ours, and `CPU ms` the
processor's time, of all threads. The floor is the time that a device's memory needs to
move every output of the image tower's convolutions and products eight times. --count
prints the compiler's counts instead, for this machine or, with --topology=v5e:2x2, for
one core of TPUs (with the extra `tpu`; without --scan, because loops count once).
--profile sums the time of one step's kernels by type.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from align_jax.devices.kernel_choice import choose_kernels
from align_jax.devices.mesh import batch_split, make_mesh
from align_jax.devices.runtime import reuse_memory
from align_jax.losses.objective import LossConfig
from align_jax.models.dual_encoder import DualEncoder
from align_jax.training.compiled_step import compile_step
from align_jax.training.flops import count_model_flops
from align_jax.training.optimizer import OptimizerConfig
from align_jax.training.step_plan import StepPlan
from align_jax.training.train_state import TrainState, create_state
from benchmarks.comparisons import Comparison, record
from benchmarks.kernel_times import print_kernel_times
from benchmarks.step_flags import OURS, Program, read_flags
from benchmarks.step_towers import count_outputs, image_tower, make_model
from benchmarks.turns import wait_for_turn

MOVES = 8  # of an output: the fewest of all schemes that we considered
GIB = 2**30


def main() -> None:
    """Runs every implementation and prints the table."""
    flags = read_flags(__doc__.splitlines()[0])
    if flags.only == OURS:
        measure(prepare_ours(flags), flags)
    elif flags.count or flags.topology:
        print_counts(flags)
    elif flags.only:
        from benchmarks.step_peers import prepare_peer

        measure(prepare_peer(flags), flags)
    else:
        print_table(flags)


def print_table(flags: argparse.Namespace) -> None:
    """Measures one implementation after the other, each in a separate process."""
    floor = 1e3 * floor_bytes(flags) / flags.bandwidth
    print(
        f"{flags.image} and {flags.text}, batch {flags.batch}, {flags.image_size} px,"
        f" {flags.tokens} tokens, {flags.dtype}; ours: BatchNorm groups of"
        f" {flags.group}, {flags.optimizer}, scan={flags.scan},"
        f" rematerialise={flags.rematerialise}, kernels={flags.kernels},"
        f" attention={flags.attention}; floor of the image tower {floor:.1f} ms"
    )
    print(
        f"{'':<20}{'ms':>8}{'pairs/s':>9}{'ratio':>7}{'CPU ms':>8}{'GiB':>7}"
        f"{'floor':>7}{'TFLOP/s':>9}{'GB moved':>10}{'compile s':>11}",
        flush=True,
    )
    first, own = None, None
    for name in (OURS, *flags.peers):
        command = [sys.executable, "-m", "benchmarks.step", *sys.argv[1:]]
        child = subprocess.run(
            [*command, "--only", name], stdout=subprocess.PIPE, text=True
        )
        if child.returncode:
            print(f"{name:<20} failed, see above", flush=True)
            continue
        *lines, last = child.stdout.strip().splitlines()
        found = json.loads(last)
        first = first or found["ms"]
        print(
            f"{name:<20}{found['ms']:>8.1f}{1e3 * flags.batch / found['ms']:>9.0f}"
            f"{found['ms'] / first:>7.2f}{found['processor_ms']:>8.0f}"
            f"{found['peak_bytes'] / GIB:>7.1f}{floor / found['ms']:>7.2f}"
            f"{1e-9 * found.get('flops', math.nan) / found['ms']:>9.3g}"
            f"{1e-9 * found.get('traffic', math.nan):>10.1f}"
            f"{found['compile_seconds']:>11.0f}",
            flush=True,
        )
        print(*lines, sep="\n", end="\n" if lines else "", flush=True)
        if name == OURS:
            own = found
        elif own:
            step = f"step, {flags.image} and {flags.text}, batch {flags.batch}"
            times = own["ms"], found["ms"]
            record(flags.record, [Comparison(step, name, "ms", *([t] for t in times))])


def measure(program: Program, flags: argparse.Namespace) -> None:
    """Times steps and prints the result as JSON.

    Steps are queued five at a time, because waiting for each one costs milliseconds.
    With `flags.in_turn`, the process waits for its turn first.
    """
    if flags.in_turn:
        wait_for_turn()
    for _ in range(4):
        program.take()
    program.wait()
    milliseconds, processor = [], []
    for _ in range(max(flags.steps // 5, 1)):
        start, busy = time.perf_counter(), time.process_time()
        for _ in range(5):
            program.take()
        program.wait()
        milliseconds.append(1e3 * (time.perf_counter() - start) / 5)
        processor.append(1e3 * (time.process_time() - busy) / 5)
    if flags.profile and flags.only == OURS:
        print_kernel_times(program.take, program.wait)
    found = {
        "ms": statistics.median(milliseconds),
        "all_milliseconds": milliseconds,
        "processor_ms": statistics.median(processor),
    }
    print(json.dumps(found | program.finish()), flush=True)


def floor_bytes(flags: argparse.Namespace) -> float:
    """Returns a step's bytes if the outputs of `count_outputs` move `MOVES` times."""
    outputs = count_outputs(image_tower(flags), flags.image_size)
    return flags.batch * outputs * jnp.dtype(flags.dtype).itemsize * MOVES


def make_plan(flags: argparse.Namespace, mesh: jax.sharding.Mesh) -> StepPlan:
    """Returns the plan that our step is compiled for."""
    model = make_model(flags)
    return StepPlan(
        DualEncoder(model, flags.group, None, choose_kernels(flags.kernels, mesh)),
        LossConfig(precision=flags.precision),
        OptimizerConfig(kind=flags.optimizer, warmup_steps=10),
        total_steps=10_000,
        virtual_cores=flags.batch // flags.pairs_per_core,
        pairs_per_core=flags.pairs_per_core,
        microbatches=flags.microbatches,
        seed=0,
        mesh=mesh,
    )


def print_counts(flags: argparse.Namespace) -> None:
    """Prints the compiler's counts for one device of this machine or of a TPU slice."""
    devices = jax.devices()
    if flags.topology:
        from align_jax.plan import find_devices

        devices = find_devices(flags.topology)
    mesh = make_mesh(devices=devices[:1])
    plan, shapes = make_plan(flags, mesh), batch_shapes(flags, mesh)
    start = time.perf_counter()
    step = compile_step(plan, shapes)
    seconds = time.perf_counter() - start
    costs, memory = step.cost_analysis(), step.memory_analysis()
    model = sum(count_model_flops(plan, shapes).values())
    flops, traffic, least, counted = (
        total / flags.batch / 1e9
        for total in (
            model,
            costs["bytes accessed"],
            floor_bytes(flags),
            costs["flops"],
        )
    )
    where = flags.topology or devices[0].platform
    print(
        f"{where}: a pair takes {counted:.2f} GFLOP (the"
        f" model's {flops:.2f}) and {traffic:.3f} GB of traffic, the floor of the image"
        f" tower {least:.3f}; {memory.temp_size_in_bytes / GIB:.2f} GiB of temporaries;"
        f" compiled in {seconds:.0f} s"
    )


def batch_shapes(
    flags: argparse.Namespace, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the batch's arrays."""
    side, split = flags.image_size, batch_split(mesh)
    images, tokens = (flags.batch, side, side, 3), (flags.batch, flags.tokens)
    return {
        "images": jax.ShapeDtypeStruct(images, jnp.uint8, sharding=split),
        "tokens": jax.ShapeDtypeStruct(tokens, jnp.int32, sharding=split),
    }


def prepare_ours(flags: argparse.Namespace) -> Program:
    """Compiles our step."""
    reuse_memory()
    plan = make_plan(flags, make_mesh())
    start = time.perf_counter()
    step = compile_step(plan, batch_shapes(flags, plan.mesh))
    facts = {
        "compile_seconds": time.perf_counter() - start,
        "flops": count_work(flags, plan.mesh),
    }
    return run_ours(plan, step, create_state(plan), flags, facts)


def count_work(flags: argparse.Namespace, mesh: jax.sharding.Mesh) -> float:
    """Counts a step's operations, see `align_jax.training.flops`."""
    plan = make_plan(flags, mesh)
    return sum(count_model_flops(plan, batch_shapes(flags, mesh)).values())


def run_ours(
    plan: StepPlan,
    step: jax.stages.Compiled,
    state: TrainState,
    flags: argparse.Namespace,
    facts: dict[str, float],
) -> Program:
    """Returns our step on random data.

    Args:
      plan: plan of the step.
      step: program of the step.
      state: first state.
      flags: sizes of the step.
      facts: further results, which `Program.finish` returns with those it measures.
    """
    random, metrics = np.random.default_rng(0), {}
    words = plan.model.config.towers["text_tower"].vocabulary_size
    shapes = batch_shapes(flags, plan.mesh)
    batch = {
        name: jax.device_put(
            random.integers(1, highest, size=shapes[name].shape, dtype=np.int32).astype(
                shapes[name].dtype
            ),
            shapes[name].sharding,
        )
        for name, highest in (("images", 256), ("tokens", words))
    }

    def take():
        nonlocal state, metrics
        state, metrics = step(state, batch)

    def finish():
        memory, costs = step.memory_analysis(), step.cost_analysis()
        peak = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
        return facts | {
            "peak_bytes": peak,
            "traffic": costs.get("bytes accessed", math.nan),
            "loss_is_finite": bool(np.isfinite(metrics["loss"])),
        }

    return Program(take, lambda: jax.block_until_ready(state), finish)


if __name__ == "__main__":
    main()
