"""Compares runs with each other and with ALIGN's published numbers.

    python -m align_jax.report DIR... --out=FOLDER

Each DIR is a run's workdir, or a folder of runs such as the folder of a sweep. The
command writes `summary.html`, a self-contained page, and `summary.md` into FOLDER,
by default the first DIR. An evaluation's scores are shown with the run it evaluated,
if that run is also in a DIR and has the same last step and no scores of these names.
"""

import argparse
import os
import sys

from align_jax.errors import run_command


def main() -> None:
    """Reads the flags, writes both files and prints their paths."""
    parser = argparse.ArgumentParser(
        prog="python -m align_jax.report", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("places", nargs="+", metavar="DIR")
    parser.add_argument("--out", metavar="FOLDER")
    flags = parser.parse_args()

    from align_jax import places
    from align_jax.report.found_runs import find_runs
    from align_jax.report.summary import write_summary

    runs = find_runs(flags.places)
    out = places.resolve(flags.out or flags.places[0])
    for path in write_summary(runs, out):
        print(path)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(run_command("align_jax.report", main))
