"""All benchmarks of a GPU as one check: compiled ahead on CPUs, run in six minutes.

    python -m benchmarks.gpu_check compile runs/gpu
    python -m benchmarks.gpu_check run runs/gpu --json runs/gpu/h200.json

`compile` needs what `benchmarks.ahead` needs. It compiles the programs of
`benchmarks.gpu_parts` one after another, each in a separate process; programs that the
folder has are left out. `run` needs one GPU and the same version of JAX. It times these
programs and their peers, as far as those are installed, the most important ones first.
After each part it writes all results to the file of --json. Logs are in the folder.

In the table, a pair's spread is that of groups of five steps, or of single losses. The
ratio is the speed relative to the first peer that was timed. The share of the GPU's
peak counts the model's operations (`align_jax.training.flops`), and nothing that is
computed twice.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from align_jax.devices.known import DEVICES
from align_jax.errors import InputError, run_command
from benchmarks import gpu_schedule
from benchmarks.gpu_parts import PARTS, Entry, Machine, Part
from benchmarks.gpu_schedule import Budget, Process
from benchmarks.turns import TimedProcess, last_line

PACKAGES = ("jax", "torch", "timm", "transformers", "open-clip-torch")
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
# By default, JAX takes three quarters of the GPU's memory at once, and never more. The
# loss at N = 1,048,576 needs more, and many processes share the GPU.
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
}
HEAD = (
    *("part", "implementation", "pairs/s", "spread", "ms", "ratio", "of peak", "GiB"),
    "remark",
)
REASON = 200  # characters of a reason in the table
PROBE = """
import importlib.util, json, jax
devices = [d.device_kind if d.platform == "gpu" else "" for d in jax.devices()]
sees = False
if any(devices) and importlib.util.find_spec("torch"):
    import torch
    sees = torch.cuda.is_available()
print(json.dumps([devices, sees]))
"""


def compile_parts(folder: pathlib.Path, parts: Sequence[Part] = PARTS) -> int:
    """Compiles the programs that the folder lacks; returns 1 if one failed, else 0."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    failed = False
    for entry in (entry for part in parts for entry in part.entries if entry.file):
        path = folder / entry.file
        if path.exists():
            print(f"{path} exists")
            continue
        print(f"{path} ...", end=" ", flush=True)
        log, unfinished = logs / f"{entry.file}.txt", folder / f"{entry.file}.tmp"
        with log.open("w") as output:
            command = entry.compile_command(unfinished)
            code = subprocess.run(command, stdout=output, stderr=output).returncode
        if code:
            print(f"ended with {code}: {last_line(log)}", flush=True)
            failed = True
            continue
        os.replace(unfinished, path)
        print(last_line(log), flush=True)
    return int(failed)


def check_plugin() -> None:
    """Raises InputError if JAX has no plugin for CUDA."""
    if not any(map(importlib.util.find_spec, PLUGINS)):
        raise InputError(
            "found no CUDA plugin of JAX; wanted the one of this version, as"
            f" `pip install 'jax[cuda13]=={version('jax')}'` installs it"
        )


def find_machine() -> Machine:
    """Looks at this machine's GPU in another process, which then frees its memory.

    Raises:
      InputError: JAX sees no GPU, or several.
    """
    probe = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        lines = probe.stderr.strip().splitlines() or ["no output"]
        raise InputError(f"JAX finds no device: {lines[-1]}; wanted one NVIDIA GPU")
    devices, torch = json.loads(probe.stdout.splitlines()[-1])
    if not all(devices):
        raise InputError(
            "found no GPU, only CPUs; wanted a machine with one NVIDIA GPU and JAX's"
            f" plugin for it, as `pip install 'jax[cuda13]=={version('jax')}'` installs"
        )
    if len(devices) > 1:
        raise InputError(
            f"found {len(devices)} GPUs; wanted one, such as CUDA_VISIBLE_DEVICES=0"
        )
    return Machine(devices[0], torch)


def run_parts(
    folder: pathlib.Path,
    path: pathlib.Path,
    machine: Machine,
    budget: Budget,
    parts: Sequence[Part] = PARTS,
) -> dict[str, Any]:
    """Times the parts and returns the results, which it also writes.

    Args:
      folder: folder of `compile_parts`.
      path: JSON file for the results, written after each part.
      machine: machine of the check.
      budget: time of the whole check.
      parts: the parts, the most important one first.

    Raises:
      InputError: the file cannot be written.
    """
    logs, found = folder / "logs", {}
    results = {"device": machine.kind, "versions": read_versions(), "parts": found}
    try:
        logs.mkdir(parents=True, exist_ok=True)
        write_results(path, results)
    except OSError as error:
        raise InputError(f"cannot write results: {error}") from error

    def launch(part: Part, entry: Entry) -> Process | str:
        log = logs / f"{part.name}_{re.sub(r'[^a-z0-9]+', '_', entry.name.lower())}.out"
        return entry.obstacle(folder, machine) or TimedProcess(
            entry.run_command(folder), log, ENVIRONMENT
        )

    schedule = gpu_schedule.start(parts, launch, budget)
    print("All programs compile or load. The first is timed when all are ready.")
    timed = schedule.run()
    with contextlib.closing(timed):
        for part, rows in timed:
            seconds = budget.spent()
            found[part.name] = {
                "title": part.title,
                "pairs": part.pairs,
                "ended_after_seconds": seconds,
                "rows": rows,
            }
            write_results(path, results)
            numbers = sum("reason" not in row for row in rows)
            print(
                f"{seconds:4.0f} s: {part.title}, {numbers} of {len(rows)} timed",
                flush=True,
            )
    return results


def read_versions() -> dict[str, str]:
    """Returns the versions of JAX and of the peers that are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write_results(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Writes results; a reader sees the file before or after, never a part of it."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(results, indent=1))
    os.replace(unfinished, path)


def make_table(results: dict[str, Any], parts: Sequence[Part] = PARTS) -> str:
    """Returns the results as a table in Markdown."""
    device = DEVICES.get(results["device"])
    peers = {e.name for part in parts for e in part.entries if e.is_peer}
    lines = [HEAD, ("---", "---", *["---:"] * (len(HEAD) - 3), "---")]
    for part in results["parts"].values():
        timed = [row for row in part["rows"] if "reason" not in row]
        base = [median_ms(row) for row in timed if row["implementation"] in peers]
        work = [row["flops"] for row in timed if "flops" in row]
        least = 1e3 * work[0] / device.peak_flops if device and work else None
        for row in part["rows"]:
            cells = [""] * 6 + [row.get("reason", "")[:REASON].replace("|", "/")]
            if row in timed:
                cells = describe(row, part["pairs"], base[0] if base else None, least)
            lines.append((part["title"], row["implementation"], *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe(
    row: dict[str, Any], pairs: int, base: float | None, least: float | None
) -> list[str]:
    """Returns the numbers of a row of the table.

    Args:
      row: result of an entry.
      pairs: number of pairs of a step.
      base: milliseconds of the first peer that was timed; None if none was.
      least: milliseconds of the model's operations at the GPU's peak; None if unknown.
    """
    speeds = [1e3 * pairs / ms for ms in row["all_milliseconds"]]
    milliseconds = median_ms(row)
    remarks = []
    if "beside" in row:
        remarks.append(f"while these compiled: {'; '.join(row['beside'])}")
    if not row.get("loss_is_finite", True):
        remarks.append("the loss is not finite")
    return [
        f"{1e3 * pairs / milliseconds:,.0f}",
        f"{min(speeds):,.0f} to {max(speeds):,.0f}" if len(speeds) > 1 else "",
        f"{milliseconds:,.1f}",
        f"{base / milliseconds:.2f}" if base else "",
        f"{least / milliseconds:.1%}" if least else "",
        f"{row['peak_bytes'] / 2**30:.1f}",
        ", ".join(remarks),
    ]


def median_ms(row: dict[str, Any]) -> float:
    """Returns the median milliseconds of a row."""
    return statistics.median(row["all_milliseconds"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles or runs; returns 1 if a program failed or nothing was timed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    compiling = commands.add_parser("compile", help="compile the programs on CPUs")
    running = commands.add_parser("run", help="time them and their peers on one GPU")
    for command in (compiling, running):
        command.add_argument("folder", type=pathlib.Path, help="of the programs")
    running.add_argument("--json", type=pathlib.Path, help="file for the results")
    running.add_argument("--seconds", type=float, default=360, help="of all parts")
    flags = parser.parse_args(arguments)
    if flags.command == "compile":
        check_plugin()
        return compile_parts(flags.folder)
    budget = Budget(flags.seconds)
    path = flags.json or flags.folder / "results.json"
    results = run_parts(flags.folder, path, find_machine(), budget)
    versions = ", ".join(f"{name} {v}" for name, v in results["versions"].items())
    print(f"\n{results['device']}, {versions}\n\n{make_table(results)}\n")
    print(f"wrote {path}")
    rows = [row for part in results["parts"].values() for row in part["rows"]]
    return int(all("reason" in row for row in rows))


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.gpu_check", main))
