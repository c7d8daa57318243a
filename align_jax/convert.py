"""Converts weights: python -m align_jax.convert --from SOURCE --to DIR."""

import argparse
import sys

from align_jax.errors import run_command


def main() -> None:
    """Reads the weights that the flags name and writes them to a new folder.

    Raises:
      InputError: the source cannot be read, the folder exists and is not empty, or the
        weights do not fit the format.
    """
    # Imported here, so that `run_command` reports a missing package in one line.
    from align_jax.devices.runtime import start
    from align_jax.weights.folder import write_weights
    from align_jax.weights.huggingface_folder import write_align
    from align_jax.weights.narrow import narrow
    from align_jax.weights.source import open_weights

    writers = {"align_jax": write_weights, "huggingface": write_align}
    parser = argparse.ArgumentParser(
        prog="python -m align_jax.convert",
        description=(open_weights.__doc__ or "").split("Args:")[0],
    )
    parser.add_argument("--from", dest="source", required=True, metavar="SOURCE")
    parser.add_argument("--to", required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--format", choices=writers, default="align_jax")
    parser.add_argument(
        "--width", type=int, help="number of the embeddings' first components to keep"
    )
    flags = parser.parse_args()
    start()
    weights = narrow(open_weights(flags.source), flags.width)
    writers[flags.format](weights, flags.to)
    count = sum(
        array.size for path, array in weights.variables.items() if path[0] == "params"
    )
    kind = weights.kind.replace("_", " ")
    print(f"{flags.to}: {kind} of {count:,} parameters, as {flags.format}")


if __name__ == "__main__":
    sys.exit(run_command("align_jax.convert", main))
