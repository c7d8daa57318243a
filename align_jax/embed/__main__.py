"""Embeds the pictures of Parquet files.

    python -m align_jax.embed --model=RUN --images='SHARDS/*.parquet' --out=FOLDER

RUN is anything that `align_jax.load` reads. The files have the columns `image_id` and
`image` (a file's bytes); `align_jax.embed.shards` says what FOLDER then holds. What
is there already is left alone, so the same command continues a killed one.
"""

import argparse
import os
import sys
import time

from align_jax import places
from align_jax.errors import InputError, run_command


def main() -> None:
    """Reads the flags, checks the files, then opens the model and embeds."""
    flags = read_flags()
    # Here, not above: a missing package ends in one line.
    import tqdm

    from align_jax.devices.runtime import start

    start()
    from align_jax.embed.model import load
    from align_jax.embed.shards import embed_shards, list_shards

    if flags.check:
        print(f"{flags.model}: embeddings of {load(flags.model).width} numbers")
        return
    shards = list_shards(flags.images)
    model = load(flags.model, flags.batch_size)
    there = sum((flags.out / shard.name).exists() for shard in shards)
    parent, began = os.getppid(), time.perf_counter()
    total = sum(shard.rows for shard in shards)
    hidden = False if flags.child else None  # None: where there is no terminal
    with tqdm.tqdm(desc="embed", unit="picture", total=total, disable=hidden) as bar:

        def progress(rows: int) -> None:
            bar.update(rows)
            if flags.child and os.getppid() != parent:
                raise InputError("the command that started this one has ended")

        unreadable = embed_shards(model, shards, flags.out, flags.batch_size, progress)
    print(
        f"{flags.out}: {total} pictures of {len(shards)} files, {there} of them there"
        f" already, in {time.perf_counter() - began:.0f} s; {len(unreadable)} without"
        " an embedding"
    )
    for name, reason in list(unreadable.items())[:3]:
        print(f"  {name} {reason}")


def read_flags() -> argparse.Namespace:
    """The command line's flags.

    Raises:
      InputError: one is missing or out of its range.
    """
    parser = argparse.ArgumentParser(
        prog="python -m align_jax.embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="RUN")
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="PARQUET",
        help="a file, a folder or a pattern; may be repeated",
    )
    parser.add_argument("--out", type=places.local_path, metavar="FOLDER")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--check", action="store_true", help="only open the model")
    parser.add_argument(
        "--child",
        action="store_true",
        help="of another command: always show progress, and end where that one ends",
    )
    flags = parser.parse_args()
    if not flags.check and not (flags.images and flags.out):
        raise InputError("wanted --images=PARQUET and --out=FOLDER, or --check")
    if flags.batch_size < 1:
        raise InputError(f"--batch_size is {flags.batch_size}; wanted 1 or more")
    return flags


if __name__ == "__main__":
    sys.exit(run_command("align_jax.embed", main))
