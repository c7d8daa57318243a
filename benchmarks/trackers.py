"""The time of a training step with trackers beside that without.

    python -m benchmarks.trackers --steps=400

Loops without a tracker and with each take turns on the quickstart's model and batch.
All write the metrics to JSON lines and TensorBoard as the config says. A tracker works
in other threads and processes. The printed interval holds the true median of the ratios
in 95 of 100 measurements like this one.
"""

import argparse
import contextlib
import statistics
import tempfile

import jax

from align_jax.config import read_config
from align_jax.devices.mesh import make_mesh
from align_jax.devices.runtime import reuse_memory
from align_jax.runs.trackers.reporting import Trackers
from align_jax.training.pretrain_config import PretrainConfig
from benchmarks.telemetry import Logged, clocked, make_batch, median_within
from configs import quickstart

TRACKERS = {
    "none": {},
    "wandb": {"wandb": {"mode": "offline"}},
    "trackio": {"trackio": {}},
}


def main() -> None:
    """Prints the ratio for each tracker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    flags = parser.parse_args()
    reuse_memory()
    fields = quickstart.get_config().to_dict()
    config = read_config(PretrainConfig, fields)
    mesh = make_mesh()
    plan, batch, steps = config.make_plan(mesh), make_batch(config, mesh), None
    loops: list[Logged] = []
    with contextlib.ExitStack() as stack:
        for described in TRACKERS.values():
            workdir = stack.enter_context(tempfile.TemporaryDirectory())
            trackers = Trackers(described)
            stack.enter_context(trackers.reporting(workdir, fields))
            loops.append(Logged(plan, batch, config, workdir, trackers.feeds, steps))
            steps = loops[0].steps
        times: list[list[float]] = [[] for _ in loops]
        for step in range(flags.steps):
            for turn in range(len(loops)):
                i = (step + turn) % len(loops)
                times[i].append(clocked(loops[i].take) + clocked(loops[i].write))
    warm = config.log_every_steps
    plain = times[0][warm:]
    print(
        f"{statistics.median(plain):.1f} ms a step without a tracker, on"
        f" {jax.device_count()} x {jax.devices()[0].device_kind}; with"
    )
    for name, found in zip(TRACKERS, times, strict=True):
        ratios = [b / a for a, b in zip(plain, found[warm:], strict=True)]
        ratio, low, high = median_within(ratios)
        mean = sum(found[warm:]) / sum(plain)
        print(f"  {name}: {ratio:.3f} times ({low:.3f} to {high:.3f}), mean {mean:.3f}")


if __name__ == "__main__":
    main()
