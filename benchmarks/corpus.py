"""Time and memory of the corpus rules, compared with other implementations.

    python -m benchmarks.corpus --pairs 500000 --json corpus.json

The rows are Zipf-like, generated from a seed and kept in --folder. `ours` is the rule
stages of `data.corpus.builder.Build`, which all write to disk. `sql` is hand-written
SQL on DuckDB, which writes only the kept pairs. `oracle` is plain Python. These three
must keep identical rows and agree on every count. data-juicer only counts words and
characters; `lengths` is the comparable part of ours. Each run is a separate process.
Milliseconds are medians without imports; memory is the largest resident memory of a
process. The implementations take turns, so that a busy machine slows all of them.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import pyarrow.parquet as pq

from benchmarks.comparisons import Comparison, add_record_flag, record
from benchmarks.corpus_rows import generate
from benchmarks.corpus_rules import DATA_JUICER, IMPLEMENTATIONS
from data.corpus.rules import RuleBounds


def peak_bytes() -> int:
    """Returns the largest resident memory of this process.

    ru_maxrss would start at the parent's memory at the time it started this process.
    """
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status; this benchmark wants Linux")


def run_child(name: str, folder: pathlib.Path, out: pathlib.Path, flags) -> None:
    """Runs one implementation in this process and prints its time and memory."""
    if name in ("ours", "lengths"):  # imports are not timed, but need memory
        import data.corpus.builder  # noqa: F401
    else:
        import duckdb  # noqa: F401

        import tests.data.corpus.corpus_oracle  # noqa: F401

    start = time.perf_counter()
    rules = IMPLEMENTATIONS[name](folder, out, flags)
    seconds = time.perf_counter() - start
    found = {
        "milliseconds": 1e3 * seconds,
        "peak_bytes": peak_bytes(),
        "kept": pq.read_metadata(out / "kept.parquet").num_rows,
        "rules": rules,
    }
    print("RESULT" + json.dumps(found))


def start(command: list[str], **arguments) -> dict:
    """Runs a process to its end; returns the result that it printed."""
    done = subprocess.run(command, capture_output=True, text=True, **arguments)
    results = [x for x in done.stdout.splitlines() if x.startswith("RESULT")]
    if done.returncode or not results:
        tail = "\n".join(done.stderr.splitlines()[-8:])
        raise SystemExit(f"{command[:4]} ended with {done.returncode}:\n{tail}")
    return json.loads(results[-1].removeprefix("RESULT"))


def run_once(name: str, folder: pathlib.Path, out: pathlib.Path, flags) -> dict:
    """Runs one implementation once, in a new process."""
    shutil.rmtree(out, ignore_errors=True)
    if name.startswith("data-juicer"):
        out.mkdir(parents=True)
        bounds, workers = RuleBounds(), int(name.rpartition("-")[2])
        files = sorted(map(str, folder.resolve().glob("pairs/*.parquet")))
        cache = str(out.resolve())
        arguments = [files, cache, workers, bounds.min_unigrams, bounds.max_unigrams]
        script = out / "run.py"
        script.write_text(DATA_JUICER)
        command = [flags.data_juicer, str(script.resolve()), json.dumps(arguments)]
        return start(command, cwd=out, env={**os.environ, "HF_HOME": cache})
    command = [sys.executable, "-m", "benchmarks.corpus", "--child", name]
    command += ["--pairs", str(flags.pairs), "--seed", str(flags.seed)]
    command += ["--folder", str(flags.folder), "--threads", str(flags.threads)]
    command += ["--memory-limit", flags.memory_limit]
    command += ["--frequent-ngrams", str(flags.frequent_ngrams)]
    return start(command)


def check_same(results: dict[str, dict], out: pathlib.Path) -> None:
    """Ends the benchmark if implementations differ in rows or counts."""
    names = [name for name in ("ours", "sql", "oracle") if name in results]
    order = [(n, "ascending") for n in ("image_id", "text", "key")]
    first = None
    for name in names:
        table = pq.read_table(out / name / "kept.parquet").sort_by(order)
        rules = {r: c for r, c in results[name]["rules"].items() if any(c)}
        if first is None:
            first = table, rules
        elif not table.equals(first[0].cast(table.schema)):
            raise SystemExit(f"{name} and {names[0]} keep different rows")
        elif rules != first[1]:
            raise SystemExit(f"{name} counts {rules}, {names[0]} {first[1]}")


def main() -> None:
    """Reads the flags, runs the implementations and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default="runs/benchmark_corpus")
    parser.add_argument("--memory-limit", default="4GB")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--frequent-ngrams", type=int, help="default: 0.6 a pair")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=IMPLEMENTATIONS)
    parser.add_argument("--data-juicer", help="Python that has py-data-juicer")
    parser.add_argument("--json", help="file for the rows")
    add_record_flag(parser)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.frequent_ngrams is None:
        flags.frequent_ngrams = flags.pairs * 6 // 10
    folder = flags.folder / f"{flags.pairs}_{flags.seed}"
    out = flags.folder / "out"
    if flags.child == "generate":
        generate(folder, flags.pairs, flags.seed)
        print("RESULT{}")
        return
    if flags.child:
        run_child(flags.child, folder, out / flags.child, flags)
        return
    out.mkdir(parents=True, exist_ok=True)
    run_once("generate", folder, out / "generate", flags)
    names = flags.only or list(IMPLEMENTATIONS)
    if flags.data_juicer:
        names = [*names, "data-juicer-1", "data-juicer-2"]
    elif not flags.only:
        print("data-juicer is left out; --data-juicer names a Python that has it")
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(flags.repeats):
        for name in names:
            runs[name].append(run_once(name, folder, out / name, flags))
    check_same({name: found[-1] for name, found in runs.items()}, out)
    report(runs, flags)


def report(runs: dict[str, list[dict]], flags: argparse.Namespace) -> None:
    """Prints the table and writes the rows."""
    print(f"{flags.pairs} pairs, {flags.threads} threads, limit {flags.memory_limit}")
    print(f"{'implementation':<15}{'ms':>9}{'/ ours':>8}{'peak MiB':>10}{'kept':>9}")
    rows = []
    for name, found in runs.items():
        times = [run["milliseconds"] for run in found]
        row = {
            "implementation": name,
            "pairs": flags.pairs,
            "milliseconds": statistics.median(times),
            "all_milliseconds": times,
            "peak_bytes": max(run["peak_bytes"] for run in found),
            "kept": found[-1]["kept"],
            "rules": found[-1].get("rules", {}),
            "memory_limit": flags.memory_limit,
            "threads": flags.threads,
        }
        rows.append(row)
        ours = [r["milliseconds"] for r in rows if r["implementation"] == "ours"]
        ratio = f"{row['milliseconds'] / ours[0]:.2f}" if ours else ""
        print(
            f"{name:<15}{row['milliseconds']:>9.0f}{ratio:>8}"
            f"{row['peak_bytes'] / 2**20:>10.0f}{row['kept']:>9}"
        )
    own = [run["milliseconds"] for run in runs.get("ours", [])]
    record(
        flags.record,
        [
            Comparison(
                f"corpus rules, {flags.pairs} pairs",
                name,
                "ms",
                own,
                [run["milliseconds"] for run in found],
            )
            for name, found in runs.items()
            if own and name != "ours"
        ],
    )
    if flags.json:
        pathlib.Path(flags.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
