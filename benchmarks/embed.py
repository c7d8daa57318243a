"""Measures embedding a collection: pictures per second beside decoding only.

    python -m benchmarks.embed --model=runs/quickstart --pictures=2000

The pictures are those of `benchmarks.images`: JPEG files of 640 x 480 pixels, made from
a seed. Four measures take turns; figures are medians:

* `decode` decodes every picture in one thread a core, and does nothing else: the
  ceiling for a model that costs nothing.
* `prepare` also resizes them for the model.
* `embed` is `python -m align_jax.embed`: Parquet files in and out.
* `build` is `python -m align_jax.search build` on a folder, with thumbnails.

`share` is the measure's pictures per second relative to `decode`. `busy` is the used
share of all cores. Loading the model, compiling it and importing are not measured.
"""

import argparse
import concurrent.futures
import functools
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align_jax.devices.runtime import start
from align_jax.embed.model import Model, load
from align_jax.embed.shards import embed_shards, list_shards
from align_jax.input.preprocess import PreprocessConfig, evaluation_image
from align_jax.input.scratch import Scratch
from align_jax.pictures import read_picture
from align_jax.search.collection import Folder
from align_jax.search.indexing import index_pictures
from align_jax.search.vector_index import Description, create_index
from align_jax.weights.folder import digest
from benchmarks.comparisons import Comparison, add_record_flag, record
from benchmarks.images import DIFFERENT, draw_picture, number

ROWS_A_SHARD = 500


def write_pictures(folder: pathlib.Path, count: int) -> list[bytes]:
    """Writes `folder/files/*.jpg` and the same pictures as `folder/shards/*.parquet`.

    Returns:
      The files' bytes.
    """
    random = np.random.default_rng(0)
    drawn = [draw_picture(random) for _ in range(min(DIFFERENT, count))]
    files = [number(drawn[i % len(drawn)], i) for i in range(count)]
    for name in ("files", "shards"):
        (folder / name).mkdir()
    for place, file in enumerate(files):
        (folder / "files" / f"{place:07}.jpg").write_bytes(file)
    for first in range(0, count, ROWS_A_SHARD):
        rows = files[first : first + ROWS_A_SHARD]
        names = [f"{first + row:07}" for row in range(len(rows))]
        table = pa.table({"image_id": names, "image": rows})
        pq.write_table(table, folder / "shards" / f"{first:07}.parquet")
    return files


def read_all(files: Sequence[bytes], config: PreprocessConfig | None = None) -> None:
    """Decodes pictures, and resizes them if a config is given, on all cores."""
    scratch = Scratch()

    def read(file: bytes) -> None:
        buffer = functools.partial(scratch.take, "pixels")
        pixels = read_picture(file, buffer=buffer)
        if config is not None:
            evaluation_image(pixels, config)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, files):
            pass


def embed(model: Model, folder: pathlib.Path, batch_size: int) -> None:
    """Embeds the Parquet files."""
    shards = list_shards([str(folder / "shards")])
    embed_shards(model, shards, folder / "embeddings", batch_size)
    shutil.rmtree(folder / "embeddings")


def build(model: Model, folder: pathlib.Path, thumbnail: int) -> None:
    """Builds an index of the files."""
    found = Description(digest(model.weights), "", model.width, thumbnail)
    index = create_index(str(folder / "index"), found)
    index_pictures(model, Folder(str(folder / "files")), index, lambda count: None)
    shutil.rmtree(folder / "index")


def take_turns(
    measures: dict[str, Callable[[], None]],
    pictures: int,
    rounds: int,
    recorded: pathlib.Path | None,
) -> dict[str, dict[str, float]]:
    """Runs each measure once unmeasured, then all of them in turn; returns medians."""
    rates: dict[str, list[float]] = {name: [] for name in measures}
    busy: dict[str, list[float]] = {name: [] for name in measures}
    costs: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(rounds + 1):
        for name, run in measures.items():
            wall, used = time.perf_counter(), time.process_time()
            run()
            wall = time.perf_counter() - wall
            used = time.process_time() - used
            if turn:
                rates[name].append(pictures / wall)
                busy[name].append(used / wall / (os.cpu_count() or 1))
                costs[name].append(1e3 * used / pictures)
    others = [name for name in measures if name != "decode"]
    record(
        recorded,
        [
            Comparison(
                f"collection, {name}",
                "decoding only",
                "pictures/s",
                rates[name],
                rates["decode"],
            )
            for name in others
        ],
    )
    ceiling = statistics.median(rates["decode"])
    return {
        name: {
            "pictures_per_second": statistics.median(rates[name]),
            "share": statistics.median(rates[name]) / ceiling,
            "spread": max(rates[name]) / min(rates[name]) - 1,
            "busy": statistics.median(busy[name]),
            "core_ms_per_picture": statistics.median(costs[name]),
        }
        for name in measures
    }


def main() -> None:
    """Makes pictures, takes the measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="RUN")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--thumbnail", type=int, default=224)
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")
    add_record_flag(parser)
    flags = parser.parse_args()
    start(tensorflow=False)
    model = load(flags.model, flags.batch_size)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        files = write_pictures(folder, flags.pictures)
        measures = {
            "decode": lambda: read_all(files),
            "prepare": lambda: read_all(files, model.weights.preprocess),
            "embed": lambda: embed(model, folder, flags.batch_size),
            "build": lambda: build(model, folder, flags.thumbnail),
        }
        found = take_turns(measures, flags.pictures, flags.rounds, flags.record)
    print("           pictures/s    share   spread     busy   core ms a picture")
    for measure, numbers in found.items():
        print(
            f"{measure:<10}{numbers['pictures_per_second']:>11.0f}"
            f"{numbers['share']:>9.2f}{numbers['spread']:>9.1%}{numbers['busy']:>9.2f}"
            f"{numbers['core_ms_per_picture']:>20.2f}"
        )
    if flags.json:
        flags.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
