"""Evaluates 38 small sets by our command and by CLIP_benchmark's, on the same files.

    python -m benchmarks.clip_benchmark --folder=runs/clip_benchmark --baseline=PYTHON

PYTHON is an interpreter that has the package `clip-benchmark`. Its exporter writes the
sets once to FOLDER/sets, see `benchmarks.clip_benchmark_sets`; a set of several labels
is beside the 38.

* The largest difference of each score: CLIP_benchmark evaluates our embeddings.
* Time: both commands run in turns, as whole processes. CLIP_benchmark evaluates a
  torch model of about the quickstart's size, with random weights. It has no WinoGAViL,
  so it evaluates 37 sets. Ratios are medians of the rounds' ratios.
* A kill: our command is killed after some sets and started again; the results must be
  those of a whole run, and the number of embedded pictures is printed.
"""

import argparse
import collections
import json
import os
import pathlib
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq

from align_jax.evaluate import evaluate
from align_jax.evaluation.datacomp import SCORED, find_sets
from benchmarks.clip_benchmark_sets import (
    MULTILABEL,
    Drawings,
    folder_name,
    write_cues,
    write_raw,
)

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = "benchmarks/clip_benchmark_baseline.py"
# Sizes of the quickstart's towers.
SMALL = {"image_size": 32, "max_tokens": 8, "layers": 2, "hidden": 128}
SMALL |= {"embedding_size": 960}
RECALLS = (1, 5, 10)
WORKERS = 2  # processes of CLIP_benchmark that read a set; its default is 4
NAMES = {
    "acc1": "top1",
    "acc5": "top5",
    "mean_per_class_recall": "mean_per_class",
    "mean_average_precision": "mean_average_precision",
    **{f"image_retrieval_recall@{k}": f"t2i_recall@{k}" for k in RECALLS},
    **{f"text_retrieval_recall@{k}": f"i2t_recall@{k}" for k in RECALLS},
}


def write_sets(folder: pathlib.Path, flags: argparse.Namespace) -> None:
    """Writes FOLDER/sets, by CLIP_benchmark's exporter, unless it is complete."""
    if (folder / "complete").exists():
        return
    for name in ("raw", "sets"):
        shutil.rmtree(folder / name, ignore_errors=True)
    drawings = Drawings(flags.pairs)
    write_raw(folder / "raw", drawings, flags.pictures)
    command = [flags.baseline, "-P", SCRIPT, "export", folder / "raw", folder / "sets"]
    run(command, folder / "export.log")
    for each in SCORED:
        if each.task:
            write_cues(folder / "sets" / folder_name(each), drawings, flags.pictures)
    (folder / "complete").touch()


def run(command: list, log: pathlib.Path) -> dict[str, float]:
    """Runs a command; returns its seconds, and the CPU seconds of all its processes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("w") as file:
        words = [str(word) for word in command]
        code = subprocess.call(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise SystemExit(f"{command[:4]} ended with {code}; see {log}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu}


def our_command(folder: pathlib.Path, workdir: pathlib.Path, checkpoint: str) -> list:
    """Returns the command that evaluates the sets of a folder."""
    return [
        sys.executable,
        "main.py",
        "--config=configs/zero_shot.py:datacomp",
        f"--workdir={workdir}",
        f"--config.checkpoint={checkpoint}",
        f"--config.datacomp.directory={folder / 'sets'}",
        "--config.datacomp.check_sizes=False",
    ]


def their_command(flags: argparse.Namespace, kind: str, model: str, out: str) -> list:
    """Returns CLIP_benchmark's command for all sets that it has metrics for.

    Args:
      flags: flags of this script.
      kind: type of model, of `benchmarks/clip_benchmark_baseline.py`.
      model: the model's description.
      out: folder for the results of each set.
    """
    sets = [folder_name(each) for each in SCORED if not each.task]
    if kind == "table":
        sets.append(f"wds_{MULTILABEL}")
    command = [flags.baseline, "-P", SCRIPT, "eval", "--quiet", "--no_amp"]
    command += ["--num_workers", WORKERS]
    command += ["--dataset", *(f"wds/{name.removeprefix('wds_')}" for name in sets)]
    command += ["--dataset_root", f"{flags.folder / 'sets'}/wds_{{dataset}}"]
    command += ["--model_type", kind, "--model", model, "--pretrained", "none"]
    command += ["--recall_k", *RECALLS, "--output", f"{out}/{{dataset}}.json"]
    os.makedirs(out, exist_ok=True)
    return command


def time_rounds(flags: argparse.Namespace) -> list[dict]:
    """Runs both commands in turns; returns {name: seconds} of each round."""
    rounds = []
    for number in range(flags.rounds):
        folder = flags.folder / f"round{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        ours = our_command(flags.folder, folder / "ours", flags.checkpoint)
        theirs = their_command(flags, "small", json.dumps(SMALL), f"{folder}/theirs")
        row = {"ours": run(ours, folder / "ours.log")}
        row["CLIP_benchmark"] = run(theirs, folder / "theirs.log")
        print(
            *(f"{name} {taken['seconds']:.1f} s" for name, taken in row.items()),
            sep=", ",
            flush=True,
        )
        rounds.append(row)
    return rounds


def kill(flags: argparse.Namespace) -> int:
    """Kills our command after some sets and continues it; returns these sets' number.

    Raises:
      SystemExit: the results are not those of the first round.
    """
    workdir = flags.folder / "killed"
    shutil.rmtree(workdir, ignore_errors=True)
    command = our_command(flags.folder, workdir, flags.checkpoint)
    log = flags.folder / "killed.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        finished = 0
        while process.poll() is None and finished < flags.kill:
            time.sleep(0.05)
            finished = len([*(workdir / "datacomp").glob("*.json")])
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(f"our command ended before the kill; see {log}")
    run(command, log)
    whole = flags.folder / "round0" / "ours" / "results.json"
    if (workdir / "results.json").read_text() != whole.read_text():
        raise SystemExit(f"the results in {workdir} and {whole.parent} differ")
    return finished


def read_saved(workdir: pathlib.Path, kind: str) -> tuple[list[str], np.ndarray]:
    """Returns the ids and embeddings (N, D) that an evaluation saved."""
    files = sorted(workdir.glob(f"embeddings/*/{kind}/*.parquet"))
    table = pq.read_table([*map(str, files)])
    embeddings = np.array(table["embedding"].to_pylist(), np.float32)
    return table["id"].to_pylist(), embeddings


def compare(flags: argparse.Namespace) -> dict[str, list[float]]:
    """Returns the differences of each score on our embeddings, a value a set."""
    workdir = flags.folder / "round0" / "ours"
    multilabel = flags.folder / "multilabel"
    shutil.rmtree(multilabel, ignore_errors=True)
    described = {"kind": "wds", "directory": f"{flags.folder}/sets/wds_{MULTILABEL}"}
    fields = {
        "run": "evaluate",
        "checkpoint": flags.checkpoint,
        "evaluators": {"multilabel": described},
        "embeddings": str(workdir / "embeddings"),
    }
    evaluate(fields, str(multilabel))
    tars = map(str, sorted((flags.folder / "sets").glob("*/test/*.tar")))
    stored = {"tars": [*tars]}
    for kind in ("images", "texts"):
        ids, embeddings = read_saved(workdir, kind)
        stored |= {f"{kind[:-1]}_ids": ids, kind: embeddings}
    np.savez(flags.folder / "table.npz", **stored)
    out, table = flags.folder / "table", str(flags.folder / "table.npz")
    run(their_command(flags, "table", table, str(out)), flags.folder / "table.log")
    ours = json.loads((workdir / "results.json").read_text())
    ours |= json.loads((multilabel / "results.json").read_text())
    evaluators = {
        folder_name(each).removeprefix("wds_"): each.evaluator for each in SCORED
    }
    evaluators[MULTILABEL] = "multilabel"
    found = collections.defaultdict(list)
    for path in sorted(out.glob("*.json")):
        for name, value in json.loads(path.read_text())["metrics"].items():
            score = f"eval/{evaluators[path.stem]}/{NAMES[name]}"
            if np.isnan(value):  # acc5 of fewer than five classes
                assert score not in ours
                continue
            found[NAMES[name]].append(abs(ours[score] - value))
    return found


def report(flags: argparse.Namespace, rounds: list[dict], finished: int) -> dict:
    """Prints the table; returns its numbers."""
    pictures, _ = read_saved(flags.folder / "round0" / "ours", "images")
    whole = json.loads((flags.folder / "round0/ours/results.json").read_text())
    killed, _ = read_saved(flags.folder / "killed", "images")
    sets = find_sets(str(flags.folder / "sets"))
    print(
        f"{len(sets)} sets of {flags.pictures}: average of"
        f" {whole['eval/datacomp/average']:.4f};"
        f" {len(pictures)} pictures embedded, {len({*pictures})} different ones;"
        f" killed after {finished} sets and continued: the same results,"
        f" {len(killed)} pictures embedded"
    )
    numbers = {"pictures": len(pictures), "killed": len(killed)}
    for unit in ("seconds", "cpu_seconds"):
        ours, theirs = (
            [row[name][unit] for row in rounds] for name in ("ours", "CLIP_benchmark")
        )
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        print(
            f"{unit.replace('_', ' ')}: ours {statistics.median(ours):.1f},"
            f" CLIP_benchmark {statistics.median(theirs):.1f}, ratio {ratio:.2f}"
        )
        numbers |= {unit: statistics.median(ours), f"{unit}_ratio": ratio}
    differences = compare(flags)
    print("largest difference on the same embeddings:")
    for name, values in differences.items():
        print(f"  {name:<24}{max(values):.1e}  ({len(values)} sets)")
    return numbers | {"differences": {k: max(v) for k, v in differences.items()}}


def main() -> None:
    """Writes the sets, measures, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--baseline", metavar="PYTHON", required=True)
    parser.add_argument("--checkpoint", default="runs/quickstart")
    parser.add_argument("--pairs", default="runs/quickstart_data/pairs.parquet")
    parser.add_argument("--pictures", type=int, default=200, help="of each set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kill", type=int, default=12, help="sets before the kill")
    parser.add_argument("--json", type=pathlib.Path, help="file for the numbers")
    flags = parser.parse_args()
    flags.folder = flags.folder.resolve()
    flags.folder.mkdir(parents=True, exist_ok=True)
    write_sets(flags.folder, flags)
    numbers = report(flags, time_rounds(flags), kill(flags))
    if flags.json:
        flags.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
