"""Measures the corpus's image stage: pictures per second and core.

    python -m benchmarks.images --pictures 10000 --json images.json

The pictures are JPEG files of 640 x 480 pixels and quality 85, made from a seed and
kept in --folder. They are noise whose amplitude falls with the frequency, so that a
file is as large as a photograph's (scikit-learn's and scikit-image's took 40, 42 and 85
kB). Four measures are compared:

* `decode` decodes at the scale that the hash needs, and does nothing else: the ceiling.
* `plain` decodes the whole picture for the same hash.
* `hash` is `data.pictures.images.describe_images`: size, format and hash.
* `stage` is `data.corpus.builder.Build.ingest` on --workers processes. It reads
  Parquet, names pictures by their bytes, does the work of `hash` and writes Parquet.

The first three run in one process and take turns; figures are medians. `busy` is the
used share of all workers' processors, with the start of the processes.
"""

import argparse
import io
import json
import os
import pathlib
import resource
import shutil
import statistics
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.comparisons import Comparison, add_record_flag, record
from data.pictures.images import HASH_SIDE, describe_images, hash_greys, shrink

WIDTH, HEIGHT, QUALITY = 640, 480, 85
SLOPE = 1.6  # the amplitude falls as frequency to this power
DIFFERENT = 100  # pictures drawn; the others are copies, each with another comment
ROWS_A_SHARD = 500
FIRST = 500  # pictures that the measures of one process use


def draw_picture(rng: np.random.Generator) -> bytes:
    """Draws a JPEG file of noise whose amplitude falls with the frequency."""
    y = np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT
    x = np.fft.rfftfreq(WIDTH)[None] * WIDTH
    amplitude = np.maximum(np.hypot(x, y), 1) ** -SLOPE
    layers = []
    for strength in (1.0, 0.3, 0.3):  # luma and two chroma layers
        phase = np.exp(2j * np.pi * rng.random(amplitude.shape))
        noise = np.fft.irfft2(phase * amplitude, (HEIGHT, WIDTH))
        layers.append(128 + 55 * strength * noise / noise.std())
    pixels = np.clip(np.stack(layers, -1), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, "YCbCr").save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def number(file: bytes, index: int) -> bytes:
    """Returns the same picture with its number as a comment, so that bytes differ."""
    return file[:2] + b"\xff\xfe\x00\x06" + index.to_bytes(4, "big") + file[2:]


def generate(folder: pathlib.Path, count: int, seed: int) -> None:
    """Writes raw pairs in Parquet shards, unless the folder exists."""
    if folder.exists():
        return
    rng = np.random.default_rng(seed)
    files = [draw_picture(rng) for _ in range(min(DIFFERENT, count))]
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for start in range(0, count, ROWS_A_SHARD):
        rows = range(start, min(start + ROWS_A_SHARD, count))
        table = {
            "image": [number(files[i % len(files)], i) for i in rows],
            "alt_text": [f"picture number {i}" for i in rows],
        }
        path = temporary / f"{start // ROWS_A_SHARD:05}.parquet"
        pq.write_table(pa.table(table), path, compression="NONE")
    temporary.rename(folder)


def decode(files: list[bytes]) -> None:
    """Decodes pictures at the scale of the hash."""
    for file in files:
        with Image.open(io.BytesIO(file)) as picture:
            picture.draft("L", (HASH_SIDE, HASH_SIDE))
            picture.load()


def plain(files: list[bytes]) -> None:
    """Computes size, format and hash of pictures that are decoded at full size."""
    for file in files:
        with Image.open(io.BytesIO(file)) as picture:
            _ = (picture.size, picture.format, hash_greys([shrink(picture)]))


def measure_hash(files: list[bytes]) -> None:
    """Computes size, format and hash as the image stage does."""
    describe_images([""] * len(files), files)


def measure_stage(source: pathlib.Path, out: pathlib.Path, workers: int) -> dict:
    """Runs the image stage; returns its seconds and the processes' CPU seconds."""
    from data.corpus.builder import Build
    from data.corpus.config import CorpusConfig, EngineConfig
    from data.corpus.rules import RuleBounds
    from data.sources.config import SourceConfig

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    config = CorpusConfig(
        name="benchmark",
        seed=0,
        ingest=SourceConfig("parquet", str(source)),
        rules=RuleBounds(),
        vocabulary_size=1000,
        engine=EngineConfig(workers=workers),
    )
    build = Build(config, out)
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before = [resource.getrusage(kind) for kind in kinds]
    start = time.perf_counter()
    build.ingest()
    build.close()
    seconds = time.perf_counter() - start
    after = [resource.getrusage(kind) for kind in kinds]
    used = sum(
        b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime
        for a, b in zip(before, after, strict=True)
    )
    return {"seconds": seconds, "processor_seconds": used}


def main() -> None:
    """Runs the measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, default="runs/benchmark_images")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="file for the rows")
    add_record_flag(parser)
    flags = parser.parse_args()
    source = flags.folder / f"{flags.pictures}_{flags.seed}"
    generate(source, flags.pictures, flags.seed)
    first = pq.read_table(source / "00000.parquet")["image"].to_pylist()[:FIRST]
    size = statistics.mean(map(len, first))
    print(
        f"{flags.pictures} JPEG of {WIDTH} x {HEIGHT}, {size / 1000:.1f} kB on average"
    )

    measures = {"decode": decode, "plain": plain, "hash": measure_hash}
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(flags.repeats):
        for name, measure in measures.items():
            start = time.perf_counter()
            measure(first)
            seconds[name].append(time.perf_counter() - start)
    rows = [
        {"measure": name, "rate": len(first) / statistics.median(taken), "workers": 1}
        for name, taken in seconds.items()
    ]
    for workers in sorted({1, flags.workers}):
        runs = [
            measure_stage(source, flags.folder / "out", workers)
            for _ in range(flags.repeats)
        ]
        middle = statistics.median(run["seconds"] for run in runs)
        busy = statistics.median(
            run["processor_seconds"] / run["seconds"] / workers for run in runs
        )
        rate = flags.pictures / middle
        rows.append(
            {"measure": "stage", "rate": rate, "workers": workers, "busy": busy}
        )
    report(rows, flags.json)
    rates = {n: [len(first) / s for s in taken] for n, taken in seconds.items()}
    record(
        flags.record,
        [
            Comparison(
                "hashes of corpus pictures",
                name,
                "pictures/s",
                rates["hash"],
                rates[key],
            )
            for key, name in {
                "decode": "decoding only",
                "plain": "whole decode",
            }.items()
        ],
    )


def report(rows: list[dict], path: pathlib.Path | None) -> None:
    """Prints the table and writes the rows."""
    ceiling = rows[0]["rate"]
    header = f"{'measure':<10}{'workers':>8}{'pictures/s':>12}{'a core':>8}"
    print(f"{header}{'/ decode':>10}{'busy':>7}")
    for row in rows:
        a_core = row["rate"] / row["workers"]
        busy = f"{row['busy']:.0%}" if "busy" in row else ""
        print(
            f"{row['measure']:<10}{row['workers']:>8}{row['rate']:>12.0f}{a_core:>8.0f}"
            f"{a_core / ceiling:>10.2f}{busy:>7}"
        )
    if path:
        path.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
