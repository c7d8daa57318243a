"""Precision and recall of the near-duplicate detectors on augmented pictures.

    python -m data.quickstart --out=DIR
    python -m benchmarks.near_duplicates --pairs=DIR/pairs.parquet --model=RUN

Half of the pictures stand for evaluation images. A detector has to separate augmented
copies of them from the other half, see `benchmarks.calibration`. RUN is anything
that `align_jax.load` reads; without it, only the perceptual hash is measured. The
printed thresholds belong in a corpus config for that model and similar pictures:
`config.pictures.max_hash_distance` and `config.pictures.max_cosine`.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np
import pyarrow.parquet as pq

from align_jax.errors import InputError, run_command
from benchmarks.calibration import calibrate


def read_pictures(path: pathlib.Path, count: int, seed: int) -> list[bytes]:
    """Draws `count` different files from the column `image`, in an order by seed."""
    try:
        images = pq.read_table(path, columns=["image"]).column("image")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: wanted Parquet with a column image ({error})"
        ) from error
    distinct = sorted(set(images.to_pylist()) - {None})
    order = np.random.default_rng(seed).permutation(len(distinct))
    return [distinct[i] for i in order[:count]]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=pathlib.Path, required=True, metavar="PARQUET")
    parser.add_argument("--model", help="what align_jax.load reads")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--precision", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, help="file for the rows")
    flags = parser.parse_args()
    pictures = read_pictures(flags.pairs, flags.pictures, flags.seed)
    embed = None
    if flags.model:
        import align_jax

        embed = align_jax.load(flags.model).encode_images
    start = time.perf_counter()
    rows = calibrate(embed, pictures, flags.seed, flags.precision)
    seconds = time.perf_counter() - start
    print(
        f"{len(pictures)} pictures, wanted precision {flags.precision}, {seconds:.0f} s"
    )
    print(
        f"{'detector':>10} {'augmented':>10} {'threshold':>10} {'copies':>7}"
        f" {'others':>7} {'precision':>10} {'recall':>8} {'false pos.':>11}"
    )
    for row in rows:
        threshold, precision = (
            "none" if row[name] is None else format(row[name], digits)
            for name, digits in (("threshold", ".6g"), ("precision", ".4f"))
        )
        print(
            f"{row['detector']:>10} {row['augmentation']:>10} {threshold:>10}"
            f" {row['positives']:>7} {row['negatives']:>7} {precision:>10}"
            f" {row['recall']:>8.4f} {row['false_positive_rate']:>11.4f}"
        )
    if flags.json:
        found = {"model": flags.model, "pictures": len(pictures), "rows": rows}
        flags.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.near_duplicates", main))
