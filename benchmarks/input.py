"""Measures the training input's pairs per second beside decoding and a torch baseline.

    python -m benchmarks.input --folder DATA --baseline PYTHON --json input.json
    python -m benchmarks.input --folder DATA --memory --batch_size 8
    python -m benchmarks.input --folder DATA --resume
    python -m benchmarks.input --folder DATA --formats --baseline PYTHON

The pictures are noise with the spectrum of photographs, JPEG files of 500 x 375 pixels
and quality 85. They are written once to DATA, as a dataset in TFDS's layout and as
tars. `train` is the real `TrainBatches` (decode, resize to 346, crop 289, flip, tokens,
batch). `decode` only reads and decodes, with our decoder and with TensorFlow's. The
baseline reads the tars as open_clip does; it runs in PYTHON, an interpreter that has
torch, torchvision and webdataset. All take turns, and each round begins with another
one, so that a busy machine slows all of them; figures are medians over the rounds. A
ratio is of the time, then of the processor time. Streams read windows of 256 pairs, so
a turn of few batches may hold more or less of this work than its share. `--memory`
draws many batches and prints the resident memory; `--resume` times the first batch at
step 1,000,000; both take `--format`. `--formats` compares the training input of all
formats with the same pairs.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import tensorflow as tf

from align_jax.devices.runtime import ARROW_KEEPS, reuse_memory
from align_jax.input.datasets import FORMATS, DatasetConfig
from align_jax.input.phases import Phase
from align_jax.input.pipeline import TrainBatches
from align_jax.input.preprocess import PreprocessConfig, evaluation_image
from align_jax.input.scratch import Scratch
from align_jax.input.tokenizer import open_tokenizer
from align_jax.input.training_data import InputConfig, open_training
from align_jax.pictures import read_picture
from benchmarks.comparisons import Comparison, add_record_flag, record
from benchmarks.input_formats import SHARDS, open_formats, write_data

REFERENCES = {  # competitor by name of the ratio
    "tfds": "train, tfds",
    "decode_ours": "decode, ours",
    "decode_tensorflow": "decode, TensorFlow",
    "baseline": "baseline, 2 workers",
}
DEEP = 6  # batches that a pipeline may have ready when its turn starts
SETTLE = 1.5  # seconds between two turns


def open_train(
    folder: pathlib.Path,
    batch_size: int,
    start: int = 0,
    dataset: DatasetConfig | None = None,
    **preprocess,
) -> Iterator:
    """Opens the real training input, of the TFRecord files or another dataset."""
    dataset = dataset or DatasetConfig(str(folder / "records"))
    config = InputConfig({"photographs": dataset}, PreprocessConfig(**preprocess))
    tokenizer = open_tokenizer(str(folder / "vocabulary.txt"), 64)
    data = open_training(config, (Phase(0, batch_size, config.preprocess),), 1)
    return TrainBatches(data, tokenizer, seed=0, start_step=start)


def open_encoded(folder: pathlib.Path) -> tf.data.Dataset:
    """Returns an endless dataset of encoded pictures."""
    files = sorted(map(str, (folder / "records").glob("*.tfrecord-*")))
    records = tf.data.Dataset.from_tensor_slices(files).interleave(
        tf.data.TFRecordDataset, cycle_length=8
    )
    features = {"image": tf.io.FixedLenFeature((), tf.string)}
    return records.repeat().map(
        lambda record: tf.io.parse_single_example(record, features)["image"]
    )


def open_tensorflow(folder: pathlib.Path, batch_size: int) -> Iterator:
    """Yields batches of shapes of pictures that TensorFlow decoded."""
    shapes = open_encoded(folder).map(
        lambda encoded: tf.shape(tf.io.decode_jpeg(encoded, 3)), tf.data.AUTOTUNE
    )
    return shapes.batch(batch_size).prefetch(2).as_numpy_iterator()


def open_threads(folder: pathlib.Path, batch_size: int, work) -> Iterator:
    """Yields batches of `work`'s results on pictures, with one thread a processor."""
    batches = open_encoded(folder).batch(batch_size).prefetch(2).as_numpy_iterator()
    waiting = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in batches:
            waiting.append(
                [
                    pool.submit(lambda part: [work(p) for p in part], batch[i : i + 4])
                    for i in range(0, len(batch), 4)
                ]
            )
            if len(waiting) > 2:
                yield [future.result() for future in waiting.popleft()]


def measure_here(batches: Iterator, batch_size: int, count: int) -> dict:
    """Times `count` batches, after drawing those that may be ready already."""
    for _ in range(DEEP):
        next(batches)
    start, used = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)
    return {
        "pairs": count * batch_size,
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - used,
    }


def start_baseline(folder: pathlib.Path, flags: argparse.Namespace):
    """Starts the process of the baseline, which measures on request."""
    script = pathlib.Path(__file__).with_name("input_baseline.py")
    tars = str(folder / "tars" / f"{{00000..{SHARDS - 1:05}}}.tar")
    command = [flags.baseline, script, tars, "2", str(flags.batch_size)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"{flags.baseline} cannot run {script}")
    return process


def measure_baseline(process: subprocess.Popen, count: int) -> dict:
    """Measures the baseline as `measure_here` does, in the other process."""
    process.stdin.write(f"{DEEP} {count}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def compare(folder: pathlib.Path, flags: argparse.Namespace) -> list[dict]:
    """Measures all competitors in turns and returns their rows of the table."""
    size = flags.batch_size
    config, buffer = PreprocessConfig(), partial(Scratch().take, "pixels")
    decode = open_threads(folder, size, lambda e: read_picture(e, buffer=buffer))
    if flags.formats:
        formats = {
            f"train, {name}": open_train(folder, size, dataset=dataset)
            for name, dataset in open_formats(folder).items()
        }
        return take_turns({"decode, ours": decode} | formats, folder, flags)
    here = {
        "decode, ours": decode,
        "decode, TensorFlow": open_tensorflow(folder, size),
        "train, resampling pil": open_train(folder, size),
        "train, resampling tf": open_train(folder, size, resampling="tf"),
        "evaluate, exact": open_threads(
            folder,
            size,
            lambda e: evaluation_image(read_picture(e, buffer=buffer), config),
        ),
    }
    return take_turns(here, folder, flags)


def take_turns(
    here: dict[str, Iterator], folder: pathlib.Path, flags: argparse.Namespace
) -> list[dict]:
    """Measures batches of this process, and the baseline, in turns."""
    size = flags.batch_size
    turns = {
        name: lambda batches=batches: measure_here(batches, size, flags.batches)
        for name, batches in here.items()
    }
    if flags.baseline:
        baseline = start_baseline(folder, flags)
        turns["baseline, 2 workers"] = lambda: measure_baseline(baseline, flags.batches)
    found = collections.defaultdict(list)
    for number in range(flags.rounds):
        first = number % len(turns)
        for name in [*turns][first:] + [*turns][:first]:
            found[name].append(turns[name]())
            time.sleep(SETTLE)  # until its processes and threads have refilled
    if flags.baseline:
        baseline.stdin.close()
        baseline.wait()
    record(flags.record, compare_rounds(found))
    return [summarise(name, rounds, found) for name, rounds in found.items()]


def compare_rounds(found: dict[str, list[dict]]) -> list[Comparison]:
    """Compares the rounds of each competitor of ours with those of its references."""
    rates = {n: [r["pairs"] / r["seconds"] for r in rs] for n, rs in found.items()}
    return [
        Comparison(
            f"input, {name}", reference, "pairs/s", rates[name], rates[reference]
        )
        for name in rates
        for reference in REFERENCES.values()
        if reference in rates and reference != name and name.startswith("train")
    ]


def summarise(name: str, rounds: list[dict], found: dict) -> dict:
    """Returns one row of the table; a ratio is the median of the rounds' ratios."""

    def ratio(other: str) -> list[float] | None:
        """Returns the ratios of the time and of the processor time."""
        if other not in found:
            return None
        pairs = [*zip(rounds, found[other], strict=True)]
        kinds = ("seconds", "processor_seconds")
        return [statistics.median(b[k] / a[k] for a, b in pairs) for k in kinds]

    return {
        "name": name,
        "pairs_per_second": statistics.median(
            r["pairs"] / r["seconds"] for r in rounds
        ),
        "processor_milliseconds": statistics.median(
            1e3 * r["processor_seconds"] / r["pairs"] for r in rounds
        ),
        **{f"of_{name}": ratio(other) for name, other in REFERENCES.items()},
    }


def watch_memory(folder: pathlib.Path, flags: argparse.Namespace) -> list[dict]:
    """Prints this process's resident memory at ten points of many batches."""
    dataset = open_formats(folder)[flags.format]
    batches = open_train(folder, flags.batch_size, dataset=dataset)
    rows = []
    for index in range(flags.memory_batches + 1):
        next(batches)
        if index and index % max(flags.memory_batches // 10, 1) == 0:
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            mebibytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            rows.append({"batches": index, "mebibytes": round(mebibytes)})
            print(f"{index:>8} batches  {mebibytes:8.0f} MiB resident", flush=True)
    return rows


def time_resume(folder: pathlib.Path, flags: argparse.Namespace) -> list[dict]:
    """Times the first batch at step 1,000,000, with the opening of the datasets."""
    rows = []
    dataset = open_formats(folder)[flags.format]
    for _ in range(flags.rounds):
        start = time.perf_counter()
        batches = open_train(folder, flags.batch_size, 1_000_000, dataset)
        next(batches)
        rows.append({"seconds": time.perf_counter() - start})
        batches.close()
    middle = statistics.median(row["seconds"] for row in rows)
    print(
        f"first batch of {flags.batch_size} at step 1,000,000, {flags.format}:"
        f" {middle:.2f} s"
    )
    return rows


def main() -> None:
    """Measures and prints the table, the memory or the time to resume."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--baseline", metavar="PYTHON", help="one that has webdataset")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=64, help="timed each round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", action="store_true", help="watch memory instead")
    parser.add_argument("--resume", action="store_true", help="time it instead")
    parser.add_argument("--formats", action="store_true", help="compare all formats")
    parser.add_argument("--format", choices=FORMATS, default="tfds")
    parser.add_argument("--memory_batches", type=int, default=20_000)
    parser.add_argument("--json", type=pathlib.Path, help="file for the rows")
    add_record_flag(parser)
    flags = parser.parse_args()
    name, value = ARROW_KEEPS
    if name not in os.environ:  # as in training, and before pyarrow is imported
        os.environ[name] = value
        os.execv(sys.executable, sys.orig_argv)
    reuse_memory()  # as in training
    if not (flags.folder / "vocabulary.txt").exists():
        write_data(flags.folder)
    if flags.memory:
        rows = watch_memory(flags.folder, flags)
    elif flags.resume:
        rows = time_resume(flags.folder, flags)
    else:
        rows = compare(flags.folder, flags)
        print(
            "                       pairs/s   CPU ms    of tfds  of decode    of TF's"
            " of baseline"
        )
        for row in rows:
            ratios = (row[f"of_{n}"] for n in REFERENCES)
            ratios = "".join(
                f"{'{:.2f} {:.2f}'.format(*r) if r else '':>11}" for r in ratios
            )
            print(
                f"{row['name']:<22}{row['pairs_per_second']:>8.0f}"
                f"{row['processor_milliseconds']:>9.2f}{ratios}"
            )
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
