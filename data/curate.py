"""Filters a pool of image-text pairs by its metadata; writes subsets of it.

    python -m data.curate --config=configs/corpus_X.py --workdir=DIR

Any field that the config file has can be changed, as in `--config.pool.path=FOLDER`.
The docstring of `data.curation.curator` lists the contents of DIR.
"""

import sys

from align_jax.errors import run_command


def main() -> None:
    """Reads the flags and filters the pool."""
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    # Imports inside `main` let a missing package end in a one-line error.
    from align_jax.command_line import read_build_line
    from align_jax.config import read_config
    from data.curation.config import CurationConfig

    fields, workdir = read_build_line(sys.argv)
    curation = read_config(CurationConfig, fields)
    from data.curation.curator import curate

    curate(curation, workdir)


if __name__ == "__main__":
    sys.exit(run_command("data.curate", main))
