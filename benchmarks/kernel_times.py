"""Sums the device time of a step's kernels from a profile of the step."""

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
    """Takes steps under JAX's profiler and prints the kernels that take longest.

    Args:
      take: function that queues a step.
      wait: function that waits for all queued steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                take()
            wait()
        (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    kinds, kernels = collections.Counter(), collections.Counter()
    for event in events:
        arguments = event.get("args", {})
        if "hlo_op" not in arguments or "dur" not in event:
            continue
        milliseconds = event["dur"] / 1e3 / STEPS
        kernels[f"{arguments['hlo_op']} {event['name'][:60]}"] += milliseconds
        kinds[re.sub(r"[.\d]+$", "", event["name"])[:48]] += milliseconds
    print(f"{sum(kinds.values()):.1f} ms a step in kernels; by kind:")
    for name, milliseconds in kinds.most_common(SHOWN):
        print(f"  {milliseconds:7.2f} {name}")
    print("by kernel:")
    for name, milliseconds in kernels.most_common(SHOWN):
        print(f"  {milliseconds:7.2f} {name}")
