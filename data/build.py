"""Builds a corpus from raw pairs: filters them, learns a vocabulary, writes records.

    python -m data.build --config=configs/corpus_X.py --workdir=DIR

Any field that the config file has can be changed, as in `--config.name=NAME`. The
docstring of `data.corpus.builder` lists the contents of DIR.
"""

import sys

from align_jax.errors import run_command


def main() -> None:
    """Reads the flags and builds the corpus."""
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    # Imports inside `main` let a missing package end in a one-line error. TensorFlow
    # logs while it is imported, so it is imported after the flags are checked.
    from align_jax.command_line import read_build_line
    from align_jax.config import read_config
    from data.corpus.config import CorpusConfig

    fields, workdir = read_build_line(sys.argv)
    corpus = read_config(CorpusConfig, fields)
    from data.corpus.builder import build

    build(corpus, workdir)


if __name__ == "__main__":
    sys.exit(run_command("data.build", main))
