"""Sums the device time of a step's kernels from a profile of steps.

    python -m benchmarks.kernel_times runs/quickstart/profile --steps=5

On CPUs, several kernels may run at once, so their times may exceed that of the step.
"""

import argparse
import collections
import glob
import gzip
import json
import re
import tempfile
from collections.abc import Callable

import jax

STEPS = 3
SHOWN = 40


def print_kernel_times(take: Callable[[], None], wait: Callable[[], None]) -> None:
    """Takes steps under JAX's profiler and prints them as `print_trace` does.

    Args:
      take: function that queues a step.
      wait: function that waits for all queued steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                take()
            wait()
        print_trace(folder, STEPS)


def print_trace(folder: str, steps: int) -> None:
    """Prints the kernels of a trace that take longest.

    Args:
      folder: folder of one or more traces; the last one is read.
      steps: number of steps in the trace.
    """
    paths = sorted(glob.glob(f"{folder}/plugins/profile/*/*.trace.json.gz"))
    with gzip.open(paths[-1]) as file:
        events = json.load(file)["traceEvents"]
    kinds, kernels = collections.Counter(), collections.Counter()
    for event in events:
        arguments = event.get("args", {})
        if "hlo_op" not in arguments or "dur" not in event:
            continue
        milliseconds = event["dur"] / 1e3 / steps
        kernels[f"{arguments['hlo_op']} {event['name'][:60]}"] += milliseconds
        kinds[re.sub(r"[.\d]+$", "", event["name"])[:48]] += milliseconds
    print(f"{sum(kinds.values()):.1f} ms a step in kernels; by kind:")
    for name, milliseconds in kinds.most_common(SHOWN):
        print(f"  {milliseconds:7.2f} {name}")
    print("by kernel:")
    for name, milliseconds in kernels.most_common(SHOWN):
        print(f"  {milliseconds:7.2f} {name}")


def main() -> None:
    """Prints the kernels of a trace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="as WORKDIR/profile")
    parser.add_argument("--steps", type=int, required=True)
    flags = parser.parse_args()
    print_trace(flags.folder, flags.steps)


if __name__ == "__main__":
    main()
