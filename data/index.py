"""Writes the index of a dataset of tars, with which training reaches each sample.

    python -m data.index DATASET [--out FOLDER] [--workers N]

DATASET is a path or URL of a folder of .tar files, or of files in it, as "DIR/train-*".
The index is written beside the tars, or to FOLDER if the tars cannot be written to.
Tars that are indexed already and have the same size and time are not read again, so a
stopped command continues. Parquet and ArrayRecord files need no index.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from align_jax import places, shard_files, tar_index
from align_jax.errors import InputError, run_command

SAVE_SECONDS = 10  # time between two writes of index.json


def index_dataset(dataset: str, out: str = "", workers: int = 0) -> list[str]:
    """Indexes the tars of a dataset and prints the tars that end too early.

    Args:
      dataset: path, pattern or URL of the tars.
      out: folder of the index; "" for the folder of the tars.
      workers: number of processes; 0 for one a core.

    Returns:
      The paths of the tars that were read.

    Raises:
      InputError: the dataset has no tars, a file is no tar, or the index cannot be
        written.
    """
    import tqdm

    paths = tar_index.list_tars(dataset)
    folder = tar_index.index_folder(paths, out)
    entries = tar_index.read_entries(folder)
    states = shard_files.for_each(tar_index.shard_state, paths)
    missing = [
        path
        for path, state in zip(paths, states, strict=True)
        if not tar_index.is_current(entries.get(os.path.basename(path)), state)
    ]
    _prepare(folder, entries)
    saved = time.monotonic()
    with tqdm.tqdm(desc="index", total=len(missing), unit="tar", disable=None) as bar:
        for path, entry in _scan(folder, missing, workers or os.cpu_count() or 1):
            entries[os.path.basename(path)] = entry
            bar.update()
            if time.monotonic() > saved + SAVE_SECONDS:
                tar_index.write_entries(folder, entries)
                saved = time.monotonic()
    tar_index.write_entries(folder, entries)
    _summarise([(path, entries[os.path.basename(path)]) for path in paths])
    return missing


def _prepare(folder: str, entries: dict[str, dict[str, Any]]) -> None:
    """Makes the folder of the index, and finds early that it cannot be written."""
    try:
        places.make_folder(folder)
        tar_index.write_entries(folder, entries)
    except InputError as error:
        raise InputError(
            f"the index cannot be written to {folder} ({error}); give another folder"
            " with --out, and in the config's field `index`"
        ) from error


def _scan(
    folder: str, paths: Sequence[str], workers: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Indexes tars in any order; yields the path and the entry of each."""
    if workers == 1 or len(paths) < 2:
        yield from (_index(folder, path) for path in paths)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        futures = [pool.submit(_index, folder, path) for path in paths]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _index(folder: str, path: str) -> tuple[str, dict[str, Any]]:
    """Writes the index of one tar; returns the path and its entry in index.json."""
    state = tar_index.shard_state(path)  # of before, so that a change is noticed
    index = tar_index.scan_tar(path)
    tar_index.write_index(folder, path, index)
    return path, tar_index.shard_entry(path, index) | state


def _summarise(found: list[tuple[str, dict[str, Any]]]) -> None:
    """Prints the damaged tars, and the number of samples by ending."""
    endings: dict[str, int] = {}
    for path, entry in found:
        if entry["fault"]:
            print(
                f"{path}: {entry['fault']}; its {entry['records']} samples before that"
                " are used"
            )
        for ending, count in entry["endings"].items():
            endings[ending] = endings.get(ending, 0) + count
    counts = ", ".join(f"{count} .{ending}" for ending, count in endings.items())
    samples = sum(entry["records"] for _, entry in found)
    print(f"{len(found)} tars, {samples} samples: {counts}")


def main() -> int:
    """Reads the flags and writes the index; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data.index", description=__doc__.splitlines()[0]
    )
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--out", default="", help="folder of the index")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes; default: one a core"
    )
    flags = parser.parse_args()
    if flags.workers < 0:
        parser.error(f"--workers is {flags.workers}; wanted 0 or more")

    def work() -> None:
        index_dataset(flags.dataset, flags.out, flags.workers)

    return run_command("data.index", work)


if __name__ == "__main__":
    sys.exit(main())
