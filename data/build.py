"""Builds a corpus: raw pairs to rules, vocabulary and records.

    python -m data.build --config=configs/corpus_X.py --workdir=DIR

`data.corpus.builder` says what DIR then holds.
"""

import pathlib
import re
import sys

from data.errors import DataError, run_command


def main() -> None:
    """Reads the flags and builds."""
    # Here, not above: a missing package ends in one line, and TensorFlow, which logs
    # while it is imported, comes after the flags are known to be right.
    from absl import flags
    from ml_collections import config_flags

    from data.corpus.config import CorpusConfig, read_config

    known = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=known)
    workdir = flags.DEFINE_string("workdir", None, "", flag_values=known)
    flags.mark_flags_as_required(["config", "workdir"], known)
    try:
        known(sys.argv)
        fields = config.value.to_dict()
    except (AttributeError, KeyError) as error:
        name = re.search(r"\w+", str(error)).group()
        meant = re.search(r'mean "(\w+)"', str(error))
        hint = f"did you mean {meant[1]!r}?" if meant else "see the config file"
        raise DataError(f"the config has no field {name!r}; {hint}") from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise DataError(f"bad flags: {' '.join(str(error).split())}") from error
    corpus = read_config(CorpusConfig, fields)
    from data.corpus.builder import build

    build(corpus, pathlib.Path(workdir.value))


if __name__ == "__main__":
    sys.exit(run_command("data.build", main))
