"""What metrics, norms, logging and measuring add to a training step.

    python -m benchmarks.telemetry --rounds=40

Two loops take turns on the quickstart's model and batch: a bare one, whose step returns
the state alone, and the one of a run, whose step returns all metrics for TensorBoard
and JSON lines. A round is as many steps as the config logs at once. Milliseconds are
medians over the rounds, of the clock and of the processors, which a busy machine
disturbs less; the overhead is the median of each round's ratio, beside its quartiles.
"""

import argparse
import statistics
import tempfile
import time

import jax
import numpy as np

from align_jax.config import read_config
from align_jax.flops import count_model_flops
from align_jax.pace import Pace
from align_jax.pretrain_config import PretrainConfig
from align_jax.sharding import make_mesh
from align_jax.telemetry import Profile, StepLog, open_writers
from align_jax.train_step import (
    StepPlan,
    compile_step,
    create_state,
    state_shardings,
    train_step,
)
from configs import quickstart

CLOCKS = {"clock": time.perf_counter, "processors": time.process_time}


class Bare:
    """A loop of steps that return the state alone."""

    def __init__(self, plan: StepPlan, batch: dict[str, jax.Array]):
        self._step = jax.jit(
            lambda state, batch: train_step(state, batch, plan)[0],
            out_shardings=state_shardings(plan),
            donate_argnums=0,
        )
        self._state, self._batch = create_state(plan), batch

    def take(self, steps: int) -> None:
        """Takes some steps and waits for the last."""
        for _ in range(steps):
            self._state = self._step(self._state, self._batch)
        jax.block_until_ready(self._state)


class Logged:
    """The loop of `align_jax.train`, without input, evaluation and checkpoints."""

    def __init__(
        self,
        plan: StepPlan,
        batch: dict[str, jax.Array],
        config: PretrainConfig,
        workdir: str,
    ):
        shapes = config.batch_shapes(plan.mesh)
        self._step = compile_step(plan, shapes)
        self._state, self._batch = create_state(plan), batch
        self._pace = Pace(config.batch_size, count_model_flops(plan, shapes), [])
        writers, total = open_writers(workdir, 0), config.total_steps
        self._log = StepLog(*writers, self._pace, 0, total)
        self._profile = Profile(workdir, ())
        self._taken = 0
        self.host_seconds = 0.0  # that writing took, once the metrics were there

    def take(self, steps: int) -> None:
        """Takes some steps and writes their metrics."""
        for _ in range(steps):
            self._taken += 1
            with self._pace.waiting():
                batch = self._batch
            self._profile.before(self._taken)
            self._state, metrics = self._step(self._state, batch)
            self._profile.after(self._taken, metrics)
            self._log.add(self._taken, metrics)
        jax.block_until_ready(self._state)
        start = time.perf_counter()
        self._log.flush()
        self.host_seconds += time.perf_counter() - start


def make_batch(config: PretrainConfig, mesh: jax.sharding.Mesh) -> dict:
    """Random pictures and words."""
    random = np.random.default_rng(0)
    highest = {"images": 256, "tokens": config.model.text_tower.vocabulary_size}
    return {
        name: jax.device_put(
            random.integers(highest[name], size=like.shape, dtype=like.dtype),
            like.sharding,
        )
        for name, like in config.batch_shapes(mesh).items()
    }


def seconds(take, steps: int) -> list[float]:
    """What a step takes, by each of `CLOCKS`."""
    start = [clock() for clock in CLOCKS.values()]
    take(steps)
    return [(c() - s) / steps for c, s in zip(CLOCKS.values(), start, strict=True)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    flags = parser.parse_args()
    config = read_config(PretrainConfig, quickstart.get_config().to_dict())
    mesh = make_mesh()
    plan = config.make_plan(mesh)
    batch = make_batch(config, mesh)
    steps = config.log_every_steps
    with tempfile.TemporaryDirectory() as workdir:
        bare, logged = Bare(plan, batch), Logged(plan, batch, config, workdir)
        loops = {"bare": bare.take, "logged": logged.take}
        for take in loops.values():  # warms up
            take(steps)
        logged.host_seconds = 0.0
        found = {name: [] for name in loops}
        for number in range(flags.rounds):
            order = list(loops) if number % 2 else list(reversed(loops))
            for name in order:
                found[name].append(seconds(loops[name], steps))
    print(f"{config.batch_size} pairs a step, {steps} steps a round, {flags.rounds}")
    print(f"rounds on {jax.device_count()} x {jax.devices()[0].device_kind}")
    for i, clock in enumerate(CLOCKS):
        bare_ms, logged_ms = ([1e3 * row[i] for row in rows] for rows in found.values())
        ratios = [100 * (b / a - 1) for a, b in zip(bare_ms, logged_ms, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"  {clock:<12}{statistics.median(bare_ms):>8.1f} ms a step bare,"
            f" {statistics.median(logged_ms):.1f} logged: {middle:+.2f} %"
            f" (quartiles {low:+.2f}, {high:+.2f})"
        )
    host = logged.host_seconds / flags.rounds / steps
    share = 100 * host / statistics.median(row[0] for row in found["logged"])
    print(f"  of it writing on the host: {1e3 * host:.3f} ms a step, {share:.2f} %")


if __name__ == "__main__":
    main()
