"""Makes a concept list of the words and phrases of a corpus, for `config.balance`.

    python -m data.entries WORKDIR [--out entries.txt] [--min-count 20] [--min-pmi 5]
        [--most 500000]

WORKDIR is the workdir of a build. The normalised texts of its kept pairs are counted.
So the list is for `config.balance.column = "text"`. A phrase is two neighbouring words.
It is listed if they stand together at least 2 ** min_pmi times as often as by chance.
"""

import argparse
import pathlib
import sys
import tempfile

from align_jax import places
from align_jax.command_line import local_path, path_or_url
from align_jax.errors import InputError, run_command


def main() -> None:
    """Reads the flags and writes the list."""
    parser = argparse.ArgumentParser(
        prog="data.entries",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", type=local_path, help="workdir of a build")
    parser.add_argument("--out", type=path_or_url, default="entries.txt")
    parser.add_argument("--min-count", type=int, default=20, help="of an entry")
    parser.add_argument("--min-pmi", type=float, default=5.0, help="of a phrase")
    parser.add_argument("--most", type=int, default=500_000, help="length of the list")
    flags = parser.parse_args()
    for option, number in (("min-count", flags.min_count), ("most", flags.most)):
        if number < 1:
            raise InputError(f"--{option} is {number}; wanted at least 1")

    # Imports here let a missing package end in a one-line error.
    from data.corpus.config import EngineConfig
    from data.corpus.engines import DuckDB
    from data.corpus.entry_list import list_entries

    with tempfile.TemporaryDirectory() as spill:
        engine = DuckDB(EngineConfig(), pathlib.Path(spill))
        found = list_entries(engine, flags.workdir, flags.min_count, flags.min_pmi)
        engine.close()
    entries = found[: flags.most]
    places.write_text(flags.out, "\n".join(entries) + "\n")
    print(
        f"{flags.out}: {len(entries)} entries, from {entries[0]!r} to {entries[-1]!r}"
    )


if __name__ == "__main__":
    sys.exit(run_command("data.entries", main))
