"""Compares two corpora that `data.build` wrote, or pools in DataComp's format.

    python -m data.compare A B [--out compare.html] [--memory-limit 4GB]

A and B are workdirs of builds, or Parquet files of pools, such as a pool and the rows
that a filter of `data.curate` kept. The page has the pairs, pictures, texts and words
that both keep, histograms of lengths, sizes and scores, the words of which B has more
or less, and samples of the pairs that one or both keep.
"""

import argparse
import pathlib
import sys
import tempfile

from align_jax.command_line import local_path, path_or_url
from align_jax.errors import InputError, run_command


def main() -> None:
    """Reads the flags, compares the corpora, prints the counts and writes the page."""
    parser = argparse.ArgumentParser(
        prog="data.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", type=local_path, help="workdir of a build, or a pool")
    parser.add_argument("b", type=local_path, help="another workdir or pool")
    parser.add_argument("--out", type=path_or_url, default="compare.html")
    parser.add_argument("--memory-limit", default="4GB", help="memory of DuckDB")
    flags = parser.parse_args()

    # Imports here let a missing package end in a one-line error.
    from data.corpus import compared_pools, comparison
    from data.corpus.config import EngineConfig
    from data.corpus.engines import DuckDB

    folders = [flags.a, flags.b]
    if flags.a == flags.b:
        raise InputError(f"{flags.a} is compared with itself; give two corpora")
    names = [folder.name for folder in folders]
    if names[0] == names[1]:
        names = [str(folder) for folder in folders]
    config = EngineConfig(memory_limit=flags.memory_limit)
    with tempfile.TemporaryDirectory() as spill:
        engine = DuckDB(config, pathlib.Path(spill))
        tables, same = compared_pools.open_both(engine, folders)
        first, second = tables
        report = comparison.compare_corpora(first, second, engine.execute, same)
        print(comparison.format_comparison(report, list(map(str, folders))))
        corpora = dict(zip(names, tables, strict=True))
        pair = next(iter(same.values()))
        comparison.write_comparison(report, corpora, flags.out, engine.execute, pair)
        engine.close()
    print(f"page: {flags.out}")


if __name__ == "__main__":
    sys.exit(run_command("data.compare", main))
