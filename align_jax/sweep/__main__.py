"""Runs a sweep, prints commands or jobs to run it elsewhere, or shows its progress.

    python -m align_jax.sweep --sweep=configs/sweeps/X.py --workdir=DIR

The launcher `local` runs one run after the other on this machine. `print` prints one
command per line, for xargs, Slurm or GKE. `skypilot` writes one managed job per run and
prints the commands that launch them. `status` only prints a table of the progress.
Finished runs are left alone, so the same command continues after any interruption;
failed ones are left alone without --retry. Flags after `--` are passed to every run:
`-- --config.seed=1`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

from align_jax import places
from align_jax.config import choose
from align_jax.errors import run_command


def main(argv: Sequence[str]) -> None:
    """Reads the flags and every run's config, then calls the launcher with all runs.

    Args:
      argv: arguments of the command, without the program's name.

    Raises:
      InputError: the launcher, a file or a run is unknown, a config is invalid, or the
        launcher raises it.
    """
    flags = read_flags(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Imported here, so that a missing package is reported in one line.
    from align_jax.sweep.config import open_sweep
    from align_jax.sweep.launchers import LAUNCHERS

    launch = choose(LAUNCHERS, flags.launcher, "--launcher")
    runs = {}
    for argument in flags.sweep:
        for run in open_sweep(argument, flags.workdir, flags.further):
            runs[run.workdir] = run  # equal runs of several sweeps are one
    launch([*runs.values()], flags)


def read_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the flags of the command line.

    Args:
      argv: arguments of the command, without the program's name.

    Returns:
      The flags, with `workdir` and `jobs` as absolute paths or URLs, and `further`, the
      list of the arguments after "--".
    """
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="python -m align_jax.sweep", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--sweep",
        action="append",
        required=True,
        help="FILE, or FILE:RUN,RUN for some of its runs; repeatable",
    )
    parser.add_argument("--workdir", required=True, help="folder of all runs")
    parser.add_argument(
        "--launcher",
        default="local",
        metavar="NAME",
        help="name of a launcher; local by default",
    )
    parser.add_argument("--retry", action="store_true", help="run failed runs again")
    parser.add_argument(
        "--jobs", default="jobs", help="folder for the jobs of skypilot"
    )
    parser.add_argument(
        "--template",
        default="launch/sky_tpu.yaml",
        help="SkyPilot task of which each job is a copy with another command",
    )
    flags = parser.parse_args(argv[:split])
    flags.workdir = places.resolve(flags.workdir)
    flags.jobs = places.resolve(flags.jobs)
    flags.further = [*argv[split + 1 :]]
    return flags


if __name__ == "__main__":
    sys.exit(run_command("align_jax.sweep", partial(main, sys.argv[1:])))
