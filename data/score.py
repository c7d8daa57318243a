"""Scores pairs with a model, as a pool in DataComp's format for `data.curate`.

    python -m data.score --model=RUN --kind=img2dataset --path=downloaded --out=DIR

RUN is any source that `align_jax.load` reads. The pairs come from a source of
`data.build` that has uids: tars, Parquet files or the output of img2dataset. DIR/pool
receives a Parquet file of metadata and scores and an .npz of embeddings for each shard.
The same command continues after an interruption.
"""

import argparse
import re
import sys

from align_jax.command_line import local_path
from align_jax.errors import InputError, run_command


def main() -> None:
    """Reads the flags, makes the pool and prints the counts."""
    flags = read_flags()
    # Imports here let a missing package end in a one-line error.
    from data.curation.scored_pool import ScoredPool, score_pool
    from data.sources.config import SourceConfig

    source = SourceConfig(flags.kind, flags.path, text_column=flags.text_column)
    pool = ScoredPool(source, flags.model, flags.name, flags.batch_size, flags.workers)
    counts = score_pool(pool, flags.out)
    found = ", ".join(f"{count} {what}" for what, count in counts.items())
    print(f"{flags.out / 'pool'}: {found}")


def read_flags() -> argparse.Namespace:
    """Reads the flags of the command line.

    Raises:
      InputError: a flag is out of range.
      SystemExit: a flag is missing or unknown, or --help.
    """
    parser = argparse.ArgumentParser(
        prog="python -m data.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="RUN")
    parser.add_argument("--kind", required=True, help="kind of the source")
    parser.add_argument("--path", required=True, help="file, folder or glob")
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR")
    parser.add_argument("--name", default="align", help="first part of column names")
    parser.add_argument("--text_column", default="alt_text", help="column of the texts")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0, help="0: one per core")
    flags = parser.parse_args()
    for name, least in (("batch_size", 1), ("workers", 0)):
        if getattr(flags, name) < least:
            raise InputError(
                f"--{name} is {getattr(flags, name)}; wanted {least} or more"
            )
    if not re.fullmatch(r"[A-Za-z]\w*", flags.name, re.ASCII):
        raise InputError(
            f"--name is {flags.name!r}; wanted letters, digits and underscores, a"
            " letter first"
        )
    return flags


if __name__ == "__main__":
    sys.exit(run_command("data.score", main))
