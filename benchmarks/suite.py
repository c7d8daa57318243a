"""Runs the benchmarks that compare ours with a reference: `make benchmarks`.

    python -m benchmarks.suite --folder=runs/benchmarks
    python -m benchmarks.suite --folder=runs/benchmarks --only probe loss

Each benchmark is one command of `BENCHMARKS`, with sizes for two CPU cores. A ratio
says how many times as good as the reference ours is: 1 is equal and more is better. It
is the median of the rounds' ratios, and the spread has the lowest and the highest of
them. The folder gets `revision_HASH.json` for each git revision, and `benchmarks.html`,
which plots the ratios over all revisions of the folder. The folder `logs` has their
output.
"""

import argparse
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.comparisons import read_comparisons
from benchmarks.quickstart_model import write_model
from benchmarks.revisions import Outcome, add_outcomes, read_revisions
from benchmarks.suite_page import PAGE, make_table, write_page
from benchmarks.turns import kill

MINUTES = 8  # limit of one benchmark
MODEL = "model"

# Arguments of `python -m benchmarks.` by name. {folder} is a folder for data, {model}
# a model of the quickstart's size, {python} this interpreter.
BENCHMARKS: dict[str, str] = {
    "start": "start --model={model} --peer={python} --repeats=3",
    "step": "step --image=0.5x0.5 --text=2x128 --batch=64 --group=64 --image_size=64"
    " --tokens=12 --dtype=float32 --optimizer=adamw --peers huggingface_eager timm",
    "step_vit": "step --image=vit_6x384/16 --text=clip_6x256 --image_size=112"
    " --tokens=32 --batch=32 --dtype=float32 --optimizer=adamw --peers open_clip",
    "loss": "loss --sizes 4096 8192",
    "input": "input --folder={folder}/input --baseline={python} --rounds=5",
    "input_formats": "input --folder={folder}/input --formats --rounds=5",
    "search": "search --vectors=200000 --queries=200 --folder={folder}",
    "embed": "embed --model={model} --pictures=600",
    "probe": "probe --pictures=4000 --classes=50",
    "evaluation": "evaluation --rounds=3 --index=100000",
    "images": "images --pictures=1000 --folder={folder}/images",
    "corpus": "corpus --pairs=200000 --folder={folder}/corpus --only ours sql",
    "checkpoint": "checkpoint --folder={folder}/checkpoint --rounds=2",
}


def make_command(name: str, folder: pathlib.Path) -> list[str]:
    """Returns the command of a benchmark, whose data lie below a folder."""
    own = {"folder": folder, "model": folder / MODEL, "python": sys.executable}
    module, *rest = BENCHMARKS[name].format(**own).split()
    return [sys.executable, "-m", f"benchmarks.{module}", *rest]


def run_benchmark(command: Sequence[str], log: pathlib.Path, minutes: float) -> Outcome:
    """Runs one benchmark in a process, which is killed at its time limit.

    Args:
      command: the command, which gets the flag --record.
      log: file for all that it prints.
      minutes: time limit.
    """
    recorded = log.with_suffix(".jsonl")
    recorded.unlink(missing_ok=True)
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, f"--record={recorded}"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its processes end with it
        )
        try:
            code = process.wait(60 * minutes)
            failure = f"ended with {code}, see {log}" if code else ""
        except subprocess.TimeoutExpired:
            failure = f"killed after {minutes:g} minutes, see {log}"
        finally:
            kill(process)
    comparisons = read_comparisons(recorded)
    if not comparisons and not failure:
        failure = f"recorded no comparison, see {log}"
    return Outcome(comparisons, time.perf_counter() - start, failure)


def main() -> int:
    """Runs the benchmarks; returns 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default="runs/benchmarks")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="limit of each")
    flags = parser.parse_args()
    logs, data, outcomes = flags.folder / "logs", flags.folder / "data", {}
    for path in (logs, data):
        path.mkdir(parents=True, exist_ok=True)
    if not (data / MODEL).exists():
        write_model(data / MODEL)
    for name in flags.only or BENCHMARKS:
        print(f"{name} ...", end=" ", flush=True)
        command, log = make_command(name, data), logs / f"{name}.txt"
        outcomes[name] = run_benchmark(command, log, flags.minutes)
        print(f"{outcomes[name].seconds:.0f} s {outcomes[name].failure}", flush=True)
    print(f"\n{make_table(outcomes).markdown()}\n")
    path = add_outcomes(flags.folder, outcomes)
    write_page(flags.folder / PAGE, read_revisions(flags.folder))
    print(f"wrote {path} and {flags.folder / PAGE}")
    return int(any(outcome.failure for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
