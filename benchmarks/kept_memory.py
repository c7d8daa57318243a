"""A step of the quickstart's run with XLA's memory kept, beside one without.

    python -m benchmarks.kept_memory --steps=150 --rounds=2

Runs with `align_jax.devices.runtime.reuse_memory` and without take turns, each in a new
process on the quickstart's data (`make data`). `ms a step` is the median over the
rounds, of the steps after the first third. Page faults and the system's seconds are
those of whole processes, with imports and compiling.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import NamedTuple

EVERY = 10  # steps between two rows of metrics
WITHOUT = "align_jax.train.reuse_memory = lambda: None"
RUN = """
import sys
import align_jax.train, main
{change}
sys.argv = ["main.py", *sys.argv[1:]]
sys.exit(main.main())
"""


class Taken(NamedTuple):
    """Milliseconds a step, and page faults and system's seconds of a process."""

    milliseconds: float
    faults: float
    system: float


def run(change: str, steps: int, workdir: str) -> Taken:
    """Trains for some steps in a new process, after a change of the code."""
    command = [
        *(sys.executable, "-c", RUN.format(change=change)),
        *("--config=configs/quickstart.py", f"--workdir={workdir}"),
        *(f"--config.total_steps={steps}", f"--config.log_every_steps={EVERY}"),
        f"--config.evaluate_every_steps={10 * steps}",
    ]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"main.py ended with {os.waitstatus_to_exitcode(status)}")
    name = "train/productive_seconds"
    lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if name in row]
    first, last = rows[len(rows) // 3], rows[-1]
    seconds = (last[name] - first[name]) / (last["step"] - first["step"])
    return Taken(1e3 * seconds, usage.ru_minflt, usage.ru_stime)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=2)
    flags = parser.parse_args()
    kinds: dict[str, list[Taken]] = {WITHOUT: [], "": []}
    for _ in range(flags.rounds):
        for change, found in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                found.append(run(change, flags.steps, f"{folder}/run"))
    print("| | ms a step | page faults | system's s |\n|---|---:|---:|---:|")
    for change, found in kinds.items():
        taken = Taken(*map(statistics.median, zip(*found, strict=True)))
        kind = "without" if change else "with"
        print(
            f"| {kind} | {taken.milliseconds:.0f} | {taken.faults:,.0f} |"
            f" {taken.system:.1f} |"
        )


if __name__ == "__main__":
    main()
