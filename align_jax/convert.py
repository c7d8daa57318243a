"""Converts weights: `python -m align_jax.convert --from SOURCE --to DIR`."""

import argparse
import sys

from align_jax.devices.runtime import start
from align_jax.errors import InputError
from align_jax.weights.folder import Weights, write_weights
from align_jax.weights.huggingface_folder import write_align
from align_jax.weights.source import open_weights

FORMATS = {"align_jax": write_weights, "huggingface": write_align}


def main() -> None:
    """Reads weights from any source and writes them to a new folder.

    Bad input prints one line on stderr and ends with exit code 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m align_jax.convert", description=open_weights.__doc__
    )
    parser.add_argument("--from", dest="source", required=True, metavar="SOURCE")
    parser.add_argument("--to", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--format", choices=FORMATS, default="align_jax")
    flags = parser.parse_args()
    start()
    try:
        weights = open_weights(flags.source)
        FORMATS[flags.format](weights, flags.to)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{flags.to}: {describe(weights)}, as {flags.format}")


def describe(weights: Weights) -> str:
    """Describes weights in one line: their type of model and number of parameters."""
    count = sum(
        array.size for path, array in weights.variables.items() if path[0] == "params"
    )
    return f"{weights.kind.replace('_', ' ')} of {count:,} parameters"


if __name__ == "__main__":
    main()
