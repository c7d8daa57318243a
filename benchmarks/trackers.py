"""The time of a training step with trackers beside that without.

    python -m benchmarks.trackers --steps=400

Two loops take turns on the quickstart's model and batch. Both write the metrics to JSON
lines and TensorBoard as the config says; one also reports to the trackers, which work
in threads and processes of their own. The printed interval holds the true median in 95
of 100 measurements like this one.
"""

import argparse
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


def main() -> None:
    """Prints the ratio for each tracker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pixels", type=int, default=32)
    flags = parser.parse_args()
    reuse_memory()
    fields = quickstart.get_config()
    fields.input.preprocess.image_size = flags.pixels
    fields.input.preprocess.resize = flags.pixels * 9 // 8
    fields = fields.to_dict()
    config = read_config(PretrainConfig, fields)
    mesh = make_mesh()
    plan, batch = config.make_plan(mesh), make_batch(config, mesh)
    for name, described in {"wandb": {"mode": "offline"}, "trackio": {}}.items():
        trackers = Trackers({name: described})
        with (
            tempfile.TemporaryDirectory() as bare,
            tempfile.TemporaryDirectory() as tracked,
            trackers.reporting(tracked, fields),
        ):
            loops = [
                Logged(plan, batch, config, bare),
                Logged(plan, batch, config, tracked, trackers.feeds),
            ]
            times: tuple[list[float], list[float]] = ([], [])
            for step in range(flags.steps):
                for i in (0, 1) if step % 2 else (1, 0):
                    times[i].append(clocked(loops[i].take) + clocked(loops[i].write))
        warm = config.log_every_steps
        plain = statistics.median(times[0][warm:])
        ratios = [b / a for a, b in zip(*times, strict=True)][warm:]
        ratio, low, high = median_within(ratios)
        mean = sum(times[1][warm:]) / sum(times[0][warm:])
        print(
            f"{name}: {plain:.1f} ms a step without, {ratio:.3f} times with it"
            f" ({low:.3f} to {high:.3f}), {mean:.3f} times in the mean, on"
            f" {jax.device_count()} x {jax.devices()[0].device_kind}"
        )


if __name__ == "__main__":
    main()
