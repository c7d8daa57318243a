"""Growth of the corpus rules' time, memory and disk with the number of pairs.

    python -m benchmarks.corpus_growth --pairs 1000000,10000000,50000000
    python -m benchmarks.corpus_growth --pairs 20000000 --even-words

The rows are those of `benchmarks.corpus`, generated from a seed and kept in --folder.
With `--even-words` all words are equally frequent, so that most n-grams are different.
Each number of pairs runs in a separate process. Each stage of
`data.corpus.builder.Build` is timed from the end of the stage before. The first table
has a row for each stage: processor seconds, pairs a second, and its file. An exponent
is the slope of the logarithm of the seconds between two numbers of pairs: 1 for time
that grows with the pairs. The second table has each run's largest resident memory, its
largest spill on disk, and the number of different n-grams.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.corpus import peak_bytes, start
from benchmarks.corpus_rows import generate
from data.corpus.ngram_counts import PARTS

SPILL_SECONDS = 0.5  # between two looks at the spill


def bytes_under(path: pathlib.Path) -> int:
    """Returns the bytes of a file or of all files in a folder."""
    paths = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for found in paths:
        with contextlib.suppress(FileNotFoundError):  # the engine removes them
            total += found.stat().st_size
    return total


@contextlib.contextmanager
def watching(folder: pathlib.Path) -> Iterator[list[int]]:
    """Looks at the bytes in a folder; the list that it yields gets the largest."""
    largest, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(SPILL_SECONDS):
            largest[0] = max(largest[0], bytes_under(folder))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield largest
    finally:
        done.set()
        thread.join()


def run_child(folder: pathlib.Path, out: pathlib.Path, flags: Any) -> dict[str, Any]:
    """Runs the stages on the rows of a folder; returns what they took."""
    from benchmarks.corpus_rules import make_build

    build = make_build(folder, out, flags)
    taken: dict[str, dict[str, float]] = {}
    save = build.save
    clocks = time.perf_counter, time.process_time
    last = [clock() for clock in clocks]

    def timed(name: str, table: Any) -> None:
        nonlocal last
        save(name, table)
        if name.startswith(PARTS):  # a part of the next stage
            return
        now = [clock() for clock in clocks]
        seconds, processor = (a - b for a, b in zip(now, last, strict=True))
        last = now
        taken[name] = {
            "seconds": seconds,
            "processor_seconds": processor,
            "bytes": bytes_under(build.stage(name)),
        }

    build.save = timed  # type: ignore[method-assign]
    with watching(build.folder / "spill") as spilled:
        build.distinct()
        build.ngrams()
        build.flags()
        build.keep()
    count = build.engine.execute
    return {
        "stages": taken,
        "peak_bytes": peak_bytes(),
        "spilled_bytes": spilled[0],
        "ngrams": int(count(build.table("ngrams").count())),
        "kept": int(count(build.table("kept").count())),
    }


def run_once(pairs: int, flags: argparse.Namespace) -> dict[str, Any]:
    """Generates the rows of a number of pairs and runs the stages in a new process."""
    kind = "_even" if flags.even_words else ""
    folder = flags.folder / f"{pairs}_{flags.seed}{kind}"
    out = flags.folder / "growth"
    generate(folder, pairs, flags.seed, flags.even_words)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.corpus_growth", "--child", str(folder)]
    command += ["--folder", str(flags.folder), "--threads", str(flags.threads)]
    command += ["--memory-limit", flags.memory_limit]
    command += ["--frequent-ngrams", str(flags.frequent_ngrams or pairs * 6 // 10)]
    found = start(command)
    shutil.rmtree(out)
    return found | {"pairs": pairs}


def format_runs(runs: list[dict[str, Any]]) -> str:
    """Returns the two tables in Markdown; `runs` are in the order of their pairs."""
    stages = "| stage | pairs | processor s | pairs a second | MB | exponent |\n"
    stages += "|---|---:|---:|---:|---:|---:|\n"
    for name in runs[0]["stages"]:
        before = None
        for run in runs:
            taken = run["stages"][name]
            spent, pairs = taken["processor_seconds"], run["pairs"]
            exponent = ""
            if before:
                rise = math.log(spent / before[0]) / math.log(pairs / before[1])
                exponent = f"{rise:.2f}"
            before = spent, pairs
            stages += (
                f"| {name} | {pairs:,} | {spent:.1f} | {pairs / spent:,.0f} |"
                f" {taken['bytes'] / 1e6:,.0f} | {exponent} |\n"
            )
    whole = "| pairs | processor s | s | peak GiB | spill GB | n-grams | kept |\n"
    whole += "|---:|---:|---:|---:|---:|---:|---:|\n"
    for run in runs:
        taken = run["stages"].values()
        whole += (
            f"| {run['pairs']:,} | {sum(t['processor_seconds'] for t in taken):.0f} |"
            f" {sum(t['seconds'] for t in taken):.0f} |"
            f" {run['peak_bytes'] / 2**30:.2f} | {run['spilled_bytes'] / 1e9:.1f} |"
            f" {run['ngrams']:,} | {run['kept']:,} |\n"
        )
    return f"{stages}\n{whole}"


def main() -> None:
    """Reads the flags, runs each number of pairs and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="500000,2000000,10000000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--even-words", action="store_true")
    parser.add_argument("--folder", type=pathlib.Path, default="runs/benchmark_corpus")
    parser.add_argument("--memory-limit", default="3GB")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--frequent-ngrams", type=int, help="default: 0.6 a pair")
    parser.add_argument("--json", type=pathlib.Path, help="file for the rows")
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        found = run_child(flags.child, flags.folder / "growth", flags)
        print("RESULT" + json.dumps(found))
        return
    runs = []
    for pairs in sorted(int(number) for number in flags.pairs.split(",")):
        print(f"{pairs:,} pairs, limit {flags.memory_limit}", file=sys.stderr)
        runs.append(run_once(pairs, flags))
        if flags.json:
            flags.json.write_text(json.dumps(runs, indent=2) + "\n")
    print(format_runs(runs))


if __name__ == "__main__":
    main()
