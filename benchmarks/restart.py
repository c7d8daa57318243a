"""The time that a killed run needs to its next step, by cause.

    python -m benchmarks.restart --processes=4

Trains the quickstart (after `make data`) with smaller towers and no evaluators, in some
processes with one CPU device each; with `--whole`, the quickstart as it is. After the
first checkpoint, all processes get SIGKILL and are started again at once. The table has
the seconds of each cause until the first step is done, for both starts, and the number
of programs that all processes compiled until then. The first start finds no compiled
programs, the second one those of the first.
"""

import argparse
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from ml_collections import ConfigDict

from align_jax.runs.lost_time import LOST, PRODUCTIVE, WALL, lost
from align_jax.runs.metric_lines import read_metrics
from align_jax.runs.pace import STARTED
from configs import quickstart

LOGGED = "logged"  # first argument of a process that calls `run_logged`
COMPILED = "/jax/core/compile/backend_compile_duration"  # with a cache, too
FOUND = "/jax/compilation_cache/cache_hits"  # this thread's program is in the cache


def get_config(whole: str = "") -> ConfigDict:
    """Returns the run's config; that of the quickstart if `whole` is not empty."""
    config = quickstart.get_config()
    if whole:
        config.checkpoint.every_steps = 5
        config.log_every_steps = 1
        return config
    config.model.image_tower.width = 0.25
    config.model.image_tower.depth = 0.1
    config.model.text_tower.layers = 1
    config.checkpoint.every_steps = 5
    config.log_every_steps = 1
    config.evaluators = ConfigDict()
    return config


def run_logged(log: str, arguments: list[str]) -> int:
    """Runs main.py; appends a line to a file for each program that is compiled.

    The line has the name and the seconds. Programs from the cache have no line.
    """
    import jax

    import main as program

    found = threading.local()

    def on_event(event: str, **_: str | int) -> None:
        found.hit = event == FOUND or getattr(found, "hit", False)

    def on_duration(event: str, seconds: float, fun_name: str = "", **_: str) -> None:
        if event == COMPILED:
            if not getattr(found, "hit", False):
                with open(log, "a") as file:
                    file.write(f"{fun_name} {seconds:.3f}\n")
            found.hit = False

    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)
    sys.argv = ["main.py", *arguments]
    return program.main()


@contextlib.contextmanager
def started(
    workdir: str, cache: str, count: int, config: str, log: str
) -> Iterator[list[subprocess.Popen]]:
    """Starts the processes of a run, and kills all of them at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        *(sys.executable, "-m", "benchmarks.restart", LOGGED, log),
        *(f"--config={config}", f"--workdir={workdir}"),
        *(["--distributed"] if count > 1 else []),
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


def describe_compiled(log: str) -> str:
    """Returns the number of compiled programs, and the seconds that they took."""
    path = pathlib.Path(log)
    lines = path.read_text().splitlines() if path.exists() else []
    seconds = sum(float(line.split()[-1]) for line in lines)
    return f"{len(lines)} in {seconds:.1f} s"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--whole", action="store_true")
    flags = parser.parse_args()
    config = f"{__file__}:whole" if flags.whole else __file__
    with tempfile.TemporaryDirectory() as folder:
        workdir, cache = f"{folder}/run", f"{folder}/cache"
        checkpoint = pathlib.Path(workdir, "checkpoints", "5")
        logs = [f"{folder}/first", f"{folder}/again"]
        start = partial(started, workdir, cache, flags.processes, config)
        with start(logs[0]) as processes:
            wait_for(checkpoint.exists, processes)
        with start(logs[1]) as processes:
            wait_for(lambda: len(split_starts(workdir)) == 2, processes)
            wait_for(lambda: bool(split_starts(workdir)[1]), processes)
        first, again = split_starts(workdir)
        compiled = [describe_compiled(log) for log in logs]
    print("| cause | first start | started again |\n|---|---:|---:|")
    for cause in first:
        print(f"| {cause} | {first[cause]:.1f} s | {again[cause]:.1f} s |")
    total = [sum(seconds.values()) for seconds in (first, again)]
    print(f"| all | {total[0]:.1f} s | {total[1]:.1f} s |")
    print(f"| programs compiled | {compiled[0]} | {compiled[1]} |")


if __name__ == "__main__":
    if sys.argv[1:2] == [LOGGED]:
        sys.exit(run_logged(sys.argv[2], sys.argv[3:]))
    main()
