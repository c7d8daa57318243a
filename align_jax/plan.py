"""Finds the memory and work of a training step on a TPU slice, without the slice.

    python main.py --config=configs/X.py --plan=v5e:16x16

The TPU compiler (pip's extra `tpu`) compiles the real training step for a topology that
this machine does not have, and reports its needs. `--plan=2xv5e:16x16` is for two
slices, `--plan=here` for this machine's devices.
"""

import contextlib
import dataclasses
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any, cast

import jax
from jax.sharding import Mesh

from align_jax.devices.collectives import Collectives, count_collectives
from align_jax.devices.known import DEVICES
from align_jax.devices.mesh import make_mesh, slices_of
from align_jax.errors import InputError, one_line
from align_jax.input.phases import Phase
from align_jax.training.compiled_step import compile_step
from align_jax.training.flops import count_model_flops
from align_jax.training.run_config import RunConfig
from align_jax.training.step_plan import StepPlan
from align_jax.training.train_state import abstract_state
from align_jax.training.training_runs import read_run_config

GIB = 2**30
HERE = "here"


@dataclasses.dataclass(frozen=True)
class Needs:
    """Memory, traffic and communication of one device in a training step.

    Attributes:
      parts: bytes of memory by content ("parameters", ...); their sum is the peak.
      traffic: bytes that a step reads from and writes to memory, as the compiler counts
        them; NaN if it does not. The body of a loop counts once, here and in
        `collectives`.
      collectives: name, as "all-gather" -> collectives, see `count_collectives`.
      seconds: duration of the compilation.
    """

    parts: dict[str, float]
    traffic: float
    collectives: dict[str, Collectives]
    seconds: float

    @property
    def peak(self) -> float:
        """Largest number of bytes in use at a time."""
        return sum(self.parts.values())


def plan(fields: dict[str, Any], target: str, alternatives: bool = False) -> bool:
    """Prints the memory and work of a training step on each device.

    If a run has phases, the step of each phase is compiled and printed.

    Args:
      fields: the literal config of a training run; its `run` is a key of `TRAINING`.
      target: topology such as "v3:16x32" or, for two slices, "2xv5e:16x16"; or "here"
        for this machine's devices.
      alternatives: whether to print in one line each the memory for half and double
        the microbatches, and for the other values of the image tower's
        `memory_choices`; the step is compiled for each of them.

    Returns:
      Whether the steps of `fields` fit into a device's memory. If the size of the
      memory is not known, whether they compile.

    Raises:
      InputError: bad fields, an unknown topology, a missing TPU compiler, or a number
        of devices that does not fit `fields`.
    """
    config = read_run_config(fields)
    devices = find_devices(target)
    mesh = make_mesh(config.fsdp, devices)
    limit = memory_limit(devices[0], here=target == HERE)
    phases = config.batch_phases
    for phase in phases:
        config.make_plan(mesh, phase)  # all are checked before one is compiled
    fits = []
    for phase in phases:
        if len(phases) > 1:
            print(f"from step {phase.start}: {_describe(phase)}")
        found = _plan_phase(config, mesh, phase, target)
        print(_verdict(found, limit), flush=True)
        fits.append(_fits(found, limit))
        for changes, other in _alternatives(config) if alternatives else ():
            try:
                step = other.make_plan(mesh, phase)
            except InputError:  # the batch does not divide into these parts
                continue
            verdict = _verdict(_try(step, other, phase), limit)
            print(f"{changes}: {verdict}", flush=True)
    return all(fits)


def _plan_phase(
    config: RunConfig, mesh: Mesh, phase: Phase, target: str
) -> Needs | str:
    """Prints the work and the needs of a phase's step; returns the result of `_try`."""
    step, tower = config.make_plan(mesh, phase), config.model.image_tower
    pairs = phase.pairs // mesh.size
    read = f" chosen from {phase.pairs_read}" if phase.batches > 1 else ""
    chosen = (f", {name}={getattr(tower, name)}" for name in tower.memory_choices)
    print(
        f"{target}: {mesh.size} x {mesh.devices.flat[0].device_kind}, {phase.pairs}"
        f" pairs a step{read}, {pairs} a device, microbatches={config.microbatches},"
        f" fsdp={config.fsdp}{''.join(chosen)}"
    )
    flops = count_model_flops(step, config.batch_shapes(mesh, phase))
    shares = ", ".join(
        f"{part} {count / phase.pairs / 1e9:.3g}" for part, count in flops.items()
    )
    total = sum(flops.values()) / phase.pairs / 1e9
    trained = "trained pair" if read else "pair"
    print(
        f"  {total:.3g} GFLOP a {trained}, nothing computed twice: {shares}", flush=True
    )
    found = _try(step, config, phase)
    if isinstance(found, Needs):
        print_needs(found, pairs)
    return found


def _describe(phase: Phase) -> str:
    """Returns the sizes of a phase's pictures and texts in words."""
    side = phase.preprocess.image_size
    tokens = f", {phase.max_tokens} tokens" if phase.max_tokens else ""
    return f"pictures of {side} x {side}{tokens}"


def _try(step: StepPlan, config: RunConfig, phase: Phase) -> Needs | str:
    """Returns the needs of a step, or the compiler's message if memory is too small."""
    try:
        return measure(step, config, phase)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return one_line(error)[:600]


def memory_limit(device: jax.Device, here: bool) -> float | None:
    """Returns the bytes of a device's memory, or None if they are not known.

    Args:
      device: a device of this machine or of a slice.
      here: whether the device is of this machine. If so, the result is the part that
        JAX uses, where the device reports it; else it is from `DEVICES`.
    """
    stats = device.memory_stats() if here else None
    if stats and "bytes_limit" in stats:  # the part of the memory that JAX uses
        return stats["bytes_limit"]
    known = DEVICES.get(device.device_kind)
    return known.memory_gib * GIB if known else None


def _fits(found: Needs | str, limit: float | None) -> bool:
    return not isinstance(found, str) and (limit is None or found.peak <= limit)


def _verdict(found: Needs | str, limit: float | None) -> str:
    """Says in one line whether the measured step fits into the memory."""
    if isinstance(found, str):
        return f"does not fit: {found}"
    needed = f"{found.peak / GIB:.2f} GiB"
    if limit is None:
        return f"{needed}; the device's memory is not known"
    word = "fits" if _fits(found, limit) else "does not fit"
    return f"{needed} of {limit / GIB:.4g}: {word}"


def _alternatives(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Yields (changed field, config), such as ("microbatches=4", ...), for `plan`.

    The configs train the same model, but need other memory and time.
    """
    for parts in {max(config.microbatches // 2, 1), config.microbatches * 2}:
        if parts != config.microbatches:
            other = dataclasses.replace(config, microbatches=parts)
            yield f"microbatches={parts}", other
    tower = config.model.image_tower
    for name, values in tower.memory_choices.items():
        for value in values:
            if value != getattr(tower, name):
                changed = dataclasses.replace(tower, **{name: value})
                model = dataclasses.replace(config.model, image_tower=changed)
                other = dataclasses.replace(config, model=model)
                yield f"model.image_tower.{name}={value}", other


def measure(step: StepPlan, config: RunConfig, phase: Phase | None = None) -> Needs:
    """Compiles a step that also measures norms; returns the needs of one device.

    Args:
      step: plan of the step.
      config: config of the run.
      phase: phase that the step belongs to; None for the first one.
    """
    state = abstract_state(step)
    start = time.perf_counter()
    shapes = config.batch_shapes(step.mesh, phase)
    compiled = compile_step(step, shapes, norms=True)
    seconds = time.perf_counter() - start
    memory = cast(Any, compiled.memory_analysis())  # never None here
    costs = cast(dict[str, float], compiled.cost_analysis())
    held: dict[str, float] = {
        "parameters": _bytes_held(state.params),
        "optimizer": _bytes_held(state.optimizer),
        "average and statistics": _bytes_held((state.average, state.batch_stats)),
    }
    # Aliased results take no memory: the new state overwrites the old one.
    arguments = memory.argument_size_in_bytes
    held["batch"] = max(arguments - sum(held.values()), 0)
    unshared = memory.output_size_in_bytes - memory.alias_size_in_bytes
    held["activations, gradients, gathered parameters"] = memory.temp_size_in_bytes
    held["program and results"] = max(unshared, 0) + memory.generated_code_size_in_bytes
    return Needs(
        held,
        costs.get("bytes accessed", math.nan),
        count_collectives(str(compiled.as_text()), slices_of(step.mesh)),
        seconds,
    )


def print_needs(needs: Needs, pairs: int) -> None:
    """Prints the needs of a device that holds `pairs` pairs of the batch."""
    for name, size in needs.parts.items():
        print(f"  {name:<46}{size / GIB:>8.2f} GiB")
    print(f"  {'peak':<46}{needs.peak / GIB:>8.2f} GiB")
    print(f"  {needs.traffic / pairs / 1e9:.2f} GB of memory traffic a pair")
    for kind, (count, size, crossing) in sorted(needs.collectives.items()):
        between = f", {crossing / 2**20:.1f} MiB from other slices" if crossing else ""
        print(f"  {count:>4} {kind:<20}{size / 2**20:>10.1f} MiB{between}")
    print(f"  compiled in {needs.seconds:.0f} s")


def _bytes_held(tree: Any) -> int:
    """Returns the bytes of a tree of abstract arrays on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def find_devices(target: str) -> list[jax.Device]:
    """Returns the devices of TPU slices, which need not exist, or of this machine.

    Args:
      target: topology of one slice as "v5e:16x16", of two as "2xv5e:16x16", or "here".

    Raises:
      InputError: an unknown slice, or a missing TPU compiler.
    """
    if target == HERE:
        return jax.devices()
    from jax.experimental import topologies

    several = re.fullmatch(r"([1-9]\d*)x(.*:.*)", target)
    options: dict[str, Any] = {"topology_name": several[2] if several else target}
    if several:
        options["num_slices"] = int(several[1])
    if options["topology_name"].startswith("v4:"):
        options["chip_config_name"] = "megacore"  # as on Cloud TPUs, one device a chip
    try:
        with _compiler_only():
            topology = topologies.get_topology_desc(platform="tpu", **options)
    except Exception as error:  # the plugin raises any error for an unknown slice
        raise InputError(
            f"--plan={target}: the TPU compiler is missing (`pip install -e '.[tpu]'`)"
            " or knows no such slice; wanted one as v3:16x32, v4:4x4x4, v6e:8x8,"
            f" several as 2xv5e:16x16, or {HERE!r}. It says: {one_line(error)[:300]}"
        ) from error
    return list(topology.devices)


@contextlib.contextmanager
def _compiler_only() -> Iterator[None]:
    """Keeps the TPU library from querying a pod's metadata and this machine's TPUs."""
    wanted = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # others may have loaded it
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
