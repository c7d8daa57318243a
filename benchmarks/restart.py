"""The time that a killed run needs to its next step, by cause.

    python -m benchmarks.restart --processes=4

Trains the quickstart (after `make data`) with smaller towers and no evaluators, in some
processes with one CPU device each. After the first checkpoint, all of them get SIGKILL
and are started again at once. The table has the seconds of each cause until the first
step is done, for both starts. The first start finds no compiled programs, the second
one those of the first.
"""

import argparse
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from align_jax.runs.lost_time import LOST, PRODUCTIVE, WALL, lost
from align_jax.runs.metric_lines import read_metrics
from align_jax.runs.pace import STARTED
from configs import quickstart


def get_config() -> ConfigDict:
    """Returns the run's config."""
    config = quickstart.get_config()
    config.model.image_tower.width = 0.25
    config.model.image_tower.depth = 0.1
    config.model.text_tower.layers = 1
    config.checkpoint.every_steps = 5
    config.log_every_steps = 1
    config.evaluators = ConfigDict()
    return config


@contextlib.contextmanager
def started(workdir: str, cache: str, count: int) -> Iterator[list[subprocess.Popen]]:
    """Starts the processes of a run, and kills all of them at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        *(sys.executable, "main.py", f"--config={__file__}"),
        *("--distributed", f"--workdir={workdir}"),
    ]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    processes = [
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(index)})
        for index in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def wait_for(seen: Callable[[], bool], processes: list[subprocess.Popen]) -> None:
    """Waits until a function returns True; ends with an error if a process ends."""
    while not seen():
        if any(process.poll() is not None for process in processes):
            raise SystemExit("a process ended too early")
        time.sleep(0.2)


def split_starts(workdir: str) -> list[dict[str, float]]:
    """Returns {cause: seconds} of each start, up to the end of its first step."""
    starts: list[dict[str, float]] = []
    productive = 0.0
    for row in read_metrics(workdir):
        if STARTED in row:
            starts.append({})
            carried = row
        elif WALL in row and not starts[-1]:
            starts[-1] = {
                text: row[lost(cause)] - carried[lost(cause)]
                for cause, text in LOST.items()
                if cause != "repeated"
            }
            # The next process begins with the time that the one before it left.
            starts[-1][LOST["away"]] = carried[lost("away")]
            starts[-1]["the first step"] = row[PRODUCTIVE] - productive
        productive = row.get(PRODUCTIVE, productive)
    return starts


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=4)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir, cache = f"{folder}/run", f"{folder}/compiled"
        checkpoint = pathlib.Path(workdir, "checkpoints", "5")
        with started(workdir, cache, flags.processes) as processes:
            wait_for(checkpoint.exists, processes)
        with started(workdir, cache, flags.processes) as processes:
            wait_for(lambda: len(split_starts(workdir)) == 2, processes)
            wait_for(lambda: bool(split_starts(workdir)[1]), processes)
        first, again = split_starts(workdir)
    print("| cause | first start | started again |\n|---|---:|---:|")
    for cause in first:
        print(f"| {cause} | {first[cause]:.1f} s | {again[cause]:.1f} s |")
    total = [sum(seconds.values()) for seconds in (first, again)]
    print(f"| all | {total[0]:.1f} s | {total[1]:.1f} s |")


if __name__ == "__main__":
    main()
