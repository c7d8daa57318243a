"""Embeds the pictures of Parquet files.

    python -m align_jax.embed --model=RUN --images='SHARDS/*.parquet' --out=FOLDER

RUN is any source that `align_jax.load` reads. The files have the columns `image_id` and
`image` (the bytes of a picture's file). FOLDER receives one Parquet file for each, with
the columns `image_id` and `embedding`; see `align_jax.embed.shards`. With --texts, the
files also have a column `texts`, a list of texts for each picture, and FOLDER's files
the column `text_embeddings`. Finished files in FOLDER are kept, so the same command
continues after an interruption.
"""

import argparse
import os
import sys
import time

from align_jax import places
from align_jax.command_line import path_or_url
from align_jax.errors import InputError, printable, run_command


def main() -> None:
    """Reads the flags, checks the files, then opens the model and embeds.

    With --check, opens the model and prints the width of its embeddings only.
    """
    flags = read_flags()
    # Imported here, so that `run_command` reports a missing package in one line.
    import tqdm

    from align_jax.devices.runtime import start

    start(tensorflow=False)
    from align_jax.embed.model import load
    from align_jax.embed.shards import embed_shards, list_shards

    if flags.check:
        width = load(flags.model, width=flags.width).width
        print(f"{flags.model}: embeddings of {width} numbers")
        return
    shards = list_shards(flags.images, flags.texts)
    model = load(flags.model, flags.batch_size, flags.width)
    there = sum(places.exists(flags.out / shard.name) for shard in shards)
    parent, began = os.getppid(), time.perf_counter()
    total = sum(shard.rows for shard in shards)
    hidden = False if flags.child else None  # None hides it unless in a terminal
    with tqdm.tqdm(desc="embed", unit="picture", total=total, disable=hidden) as bar:

        def progress(rows: int) -> None:
            bar.update(rows)
            if flags.child and os.getppid() != parent:
                raise InputError("the command that started this one has ended")

        unreadable = embed_shards(
            model, shards, flags.out, flags.batch_size, progress, flags.texts
        )
    print(
        f"{flags.out}: {total} pictures of {len(shards)} files, {there} of them there"
        f" already, in {time.perf_counter() - began:.0f} s; {len(unreadable)} without"
        " an embedding"
    )
    for name, reason in list(unreadable.items())[:3]:
        print(printable(f"  {name} {reason}"))


def read_flags() -> argparse.Namespace:
    """Reads the flags of the command line.

    Raises:
      InputError: a flag is missing or out of range.
      SystemExit: an unknown flag, a value of the wrong type, or --help.
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
    parser.add_argument("--out", type=path_or_url, metavar="FOLDER")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument(
        "--width", type=int, help="number of the embeddings' first components to keep"
    )
    parser.add_argument(
        "--texts", action="store_true", help="embed the column `texts` too"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="only open the model and print the width of its embeddings",
    )
    parser.add_argument(
        "--child",
        action="store_true",
        help="set by a parent command: always show progress, and end when it ends",
    )
    flags = parser.parse_args()
    if not flags.check and not (flags.images and flags.out):
        raise InputError("wanted --images=PARQUET and --out=FOLDER, or --check")
    if flags.batch_size < 1:
        raise InputError(f"--batch_size is {flags.batch_size}; wanted 1 or more")
    return flags


if __name__ == "__main__":
    sys.exit(run_command("align_jax.embed", main))
