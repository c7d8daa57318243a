"""Converts weights: python -m align_jax.convert --from SOURCE --to DIR."""

import argparse
import os
import sys
import tempfile
from typing import TYPE_CHECKING

from align_jax.errors import InputError, run_command

if TYPE_CHECKING:
    from align_jax.weights.folder import Weights


def read_flags() -> argparse.Namespace:
    """Reads the command line.

    Raises:
      InputError: two flags do not fit together.
    """
    from align_jax.weights.exports import ALIGN_JAX, HUGGINGFACE, WRITERS
    from align_jax.weights.source import open_weights

    parser = argparse.ArgumentParser(
        prog="python -m align_jax.convert",
        description=(open_weights.__doc__ or "").split("Args:")[0],
    )
    parser.add_argument("--from", dest="source", required=True, metavar="SOURCE")
    parser.add_argument("--to", metavar="DIR", help="a new folder")
    parser.add_argument(
        "--format",
        choices=[*WRITERS],
        help="format of the folder; huggingface is the class of transformers that has"
        " the model's towers, and with --push or --card the only one",
    )
    parser.add_argument(
        "--width", type=int, help="number of the embeddings' first components to keep"
    )
    parser.add_argument(
        "--push", metavar="ORG/NAME", help="repository of the Hugging Face hub"
    )
    parser.add_argument(
        "--card", action="store_true", help="write the model card, README.md"
    )
    parser.add_argument("--license", help="the hub's identifier, such as apache-2.0")
    parser.add_argument("--private", action="store_true", help="with --push")
    parser.add_argument(
        "--update", action="store_true", help="replace the repository's files"
    )
    flags = parser.parse_args()
    described = flags.push is not None or flags.card
    flags.format = flags.format or (HUGGINGFACE if described else ALIGN_JAX)
    if described and flags.format != HUGGINGFACE:
        raise InputError(f"--push and --card are for --format={HUGGINGFACE}")
    if described and flags.width is not None:
        raise InputError(
            "--push and --card describe a model in full width; convert it to a folder"
            " with --width first, and give that folder as --from"
        )
    if (flags.to is None) == (flags.push is None):
        raise InputError("give either --to=DIR or --push=ORG/NAME")
    if flags.push is None and (flags.private or flags.update):
        raise InputError("--private and --update are for --push")
    if flags.license is not None and not described:
        raise InputError("--license is for --push and --card")
    return flags


def main() -> None:
    """Reads the weights that the flags name and writes or uploads them.

    Raises:
      InputError: the source cannot be read, the folder exists and is not empty, the
        weights do not fit the format, or the hub refuses them.
    """
    # Imported here, so that `run_command` reports a missing package in one line.
    from align_jax.devices.runtime import start
    from align_jax.weights.narrow import narrow
    from align_jax.weights.source import open_weights

    flags = read_flags()
    start()
    if flags.push is None:
        weights = narrow(open_weights(flags.source), flags.width)
        _write(weights, flags.to, flags)
        return
    from align_jax.weights.hub import check_name, push_folder

    check_name(flags.push)
    weights = narrow(open_weights(flags.source), flags.width)
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.join(temporary, "model")
        _write(weights, folder, flags)
        url = push_folder(
            folder, flags.push, private=flags.private, update=flags.update
        )
    print(f"uploaded to {url}")


def _write(weights: "Weights", folder: str, flags: argparse.Namespace) -> None:
    """Writes the folder in the format of the flags, and prints a line on it."""
    from align_jax import places
    from align_jax.report.model_card import CARD_FILE, make_card
    from align_jax.weights.exports import WRITERS, write_huggingface

    if flags.push is not None or flags.card:
        name = flags.push or places.local_path(folder).name
        card = make_card(flags.source, weights, name, flags.license)
        write_huggingface(weights, folder, {CARD_FILE: card})
    else:
        WRITERS[flags.format](weights, folder)
    count = sum(
        array.size for path, array in weights.variables.items() if path[0] == "params"
    )
    kind = weights.kind.replace("_", " ")
    print(f"{flags.push or folder}: {kind} of {count:,} parameters, as {flags.format}")


if __name__ == "__main__":
    sys.exit(run_command("align_jax.convert", main))
