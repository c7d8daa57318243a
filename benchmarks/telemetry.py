"""The time that metrics, norms, logging and measuring add to a training step.

    python -m benchmarks.telemetry --steps=800 --pixels=32

Two steps take turns on the quickstart's model and batch, with pictures of any size: a
bare step, which returns only the state, and the step of a long run, which returns the
metrics. A long run has two programs of its step, and only the steps that write metrics
measure norms. The metrics are written to JSON lines and TensorBoard as often as the
config says. The time of writing is measured separately.

The time that metrics add inside a step is the median of the pairs' differences. The
printed interval holds the true value in 95 of 100 measurements like this one. Steps
that measure norms have a separate median, which enters the sum by their share.

The added memory traffic does not grow with the pictures, so its share is that of runs
with as much work per parameter. The compiler's counts, as if every step measured norms,
are printed, too: no other work on the machine disturbs them. --slice prints only them,
for the open model on TPUs (with the extra `tpu`).
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from clu.metric_writers import MetricWriter

from align_jax.config import read_config
from align_jax.devices.compiling import compile_fast
from align_jax.devices.mesh import make_mesh
from align_jax.devices.runtime import reuse_memory
from align_jax.models.parameters import variable_shapes
from align_jax.plan import find_devices
from align_jax.runs.pace import Pace
from align_jax.runs.profiles import Profile
from align_jax.runs.telemetry import StepLog, open_writers
from align_jax.training.compiled_step import compile_step, compile_steps
from align_jax.training.flops import count_model_flops
from align_jax.training.pretrain_config import PretrainConfig
from align_jax.training.run_config import SHORT_RUN
from align_jax.training.step_plan import StepPlan
from align_jax.training.train_state import abstract_state, create_state, state_shardings
from align_jax.training.train_step import train_step
from configs import pretrain_align_b7_base, quickstart


def compile_bare(plan: StepPlan, batch: dict) -> jax.stages.Compiled:
    """Compiles a step that returns only the state."""
    step = jax.jit(
        lambda state, batch: train_step(state, batch, plan)[0],
        out_shardings=state_shardings(plan),
        donate_argnums=0,
    )
    return compile_fast(step.lower(abstract_state(plan), batch), plan.mesh)


class Bare:
    """A loop of steps that return only the state."""

    def __init__(self, plan: StepPlan, batch: dict[str, jax.Array]):
        self.step = compile_bare(plan, batch)
        self._state, self._batch = create_state(plan), batch

    def take(self) -> None:
        """Takes a step and waits for it."""
        self._state = self.step(self._state, self._batch)
        jax.block_until_ready(self._state)


class Logged:
    """The loop of `align_jax.train`, without input, evaluation and checkpoints."""

    def __init__(
        self,
        plan: StepPlan,
        batch: dict[str, jax.Array],
        config: PretrainConfig,
        workdir: str,
        trackers: Sequence[MetricWriter] = (),
        steps: Mapping[bool, jax.stages.Compiled] | None = None,
    ):
        shapes = config.batch_shapes(plan.mesh)
        self.steps = steps or compile_steps(plan, shapes, (False, True))
        self._state, self._batch = create_state(plan), batch
        self._pace = Pace(config.batch_size, count_model_flops(plan, shapes), [])
        lines, writer, _ = open_writers(workdir, 0, trackers=trackers)
        self._log = StepLog(lines, writer, self._pace, 0, config.total_steps)
        self._profile = Profile(workdir, ())
        self._config = config
        self._taken = 0

    def take(self) -> None:
        """Takes a step and waits for it."""
        self._taken += 1
        with self._pace.waiting(self._taken):
            batch = self._batch
        self._profile.before(self._taken)
        step = self.steps[self._config.measures_norms(self._taken)]
        self._state, metrics = step(self._state, batch)
        self._profile.after(self._taken, metrics)
        self._log.add(self._taken, metrics)
        jax.block_until_ready((self._state, metrics))

    def write(self) -> None:
        """Writes the metrics of the steps since the last write, if it is due."""
        if self._config.flushes(self._taken):
            self._log.flush()


def make_batch(config: PretrainConfig, mesh: jax.sharding.Mesh) -> dict:
    """Returns random pictures and words."""
    random = np.random.default_rng(0)
    highest = {"images": 256, "tokens": config.model.text_tower.vocabulary_size}
    return {
        name: jax.device_put(
            random.integers(highest[name], size=like.shape, dtype=like.dtype),
            like.sharding,
        )
        for name, like in config.batch_shapes(mesh).items()
    }


def clocked(call: Callable[[], None]) -> float:
    """Returns the milliseconds that a call takes."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def median_within(values: list[float]) -> tuple[float, float, float]:
    """Returns the median and its 95 % interval, by the ranks of a sign test."""
    values, reach = sorted(values), 0.98 * len(values) ** 0.5
    middle = (len(values) - 1) / 2
    ranks = (math.floor(middle - reach), math.ceil(middle + reach))
    low, high = (values[min(max(rank, 0), len(values) - 1)] for rank in ranks)
    return statistics.median(values), low, high


def print_counts(bare: jax.stages.Compiled, logged: jax.stages.Compiled) -> None:
    """Prints how much more the compiler counts for a step with metrics and norms."""
    counts = [step.cost_analysis() for step in (bare, logged)]
    traffic, operations = (
        100 * (counts[1][name] / counts[0][name] - 1)
        for name in ("bytes accessed", "flops")
    )
    print(
        f"  with norms the compiler counts {operations:+.2f} % operations and"
        f" {traffic:+.2f} % bytes of memory traffic"
    )


def count_on(topology: str) -> None:
    """Prints the counts of the open model's step on a slice, without any TPU."""
    fields = pretrain_align_b7_base.get_config().to_dict()
    config = read_config(PretrainConfig, fields)
    mesh = make_mesh(config.fsdp, find_devices(topology))
    plan, shapes = config.make_plan(mesh), config.batch_shapes(mesh)
    print(f"EfficientNet-B7 and BERT-Base, {config.batch_size} pairs on {topology}")
    print_counts(compile_bare(plan, shapes), compile_step(plan, shapes, norms=True))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--slice", help="as v5e:16x16; counts for it, nothing else")
    flags = parser.parse_args()
    if flags.slice:
        count_on(flags.slice)
        return
    reuse_memory()
    fields = quickstart.get_config()
    fields.total_steps = SHORT_RUN + 1  # a long run
    fields.input.preprocess.image_size = flags.pixels
    fields.input.preprocess.resize = flags.pixels * 9 // 8
    config = read_config(PretrainConfig, fields.to_dict())
    mesh = make_mesh()
    plan = config.make_plan(mesh)
    batch = make_batch(config, mesh)
    with tempfile.TemporaryDirectory() as workdir:
        bare, logged = Bare(plan, batch), Logged(plan, batch, config, workdir)
        for _ in range(config.log_every_steps):  # warms up
            bare.take()
            logged.take()
        logged.write()
        bare_ms, logged_ms, writing_ms = [], [], 0.0
        for step in range(flags.steps):
            turns = [(bare_ms, bare.take), (logged_ms, logged.take)]
            for times, take in turns if step % 2 else reversed(turns):
                times.append(clocked(take))
            writing_ms += clocked(logged.write) / flags.steps
    step_ms = statistics.median(bare_ms)
    added = [b - a for a, b in zip(bare_ms, logged_ms, strict=True)]
    every = config.log_every_steps
    inside, low, high = median_within(added)
    measured = added[every - 1 :: every]  # steps with norms
    rare = (statistics.median(measured) - inside) / every
    inside, low, high = (value + rare for value in (inside, low, high))
    print(
        f"{config.batch_size} pairs a step, {flags.steps} steps of each kind on"
        f" {jax.device_count()} x {jax.devices()[0].device_kind}; {step_ms:.1f} ms bare"
    )
    share = 100 / step_ms
    work = sum(count_model_flops(plan, config.batch_shapes(mesh)).values())
    sizes = [math.prod(shape) for shape in variable_shapes(config.model).values()]
    print(f"{work / sum(sizes) / 1e3:.1f} thousand operations for each parameter")
    print_counts(bare.step, logged.steps[True])
    print(
        f"  in the step {inside:+7.2f} ms {share * inside:+.2f} %"
        f" ({share * low:+.2f} to {share * high:+.2f})"
    )
    print(f"  writing     {writing_ms:+7.2f} ms {share * writing_ms:+.2f} %")
    total = inside + writing_ms
    print(f"  both        {total:+7.2f} ms {share * total:+.2f} %")


if __name__ == "__main__":
    main()
