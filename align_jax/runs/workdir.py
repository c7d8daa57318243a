"""A run's folder: it belongs to one config, and files appear in it whole or not."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import tensorflow as tf

from align_jax.config import differing_fields, leave_out
from align_jax.errors import InputError

CONFIG_FILE = "config.json"
PARTIAL = f"{CONFIG_FILE}.tmp"  # what a run killed at its very start leaves
OWN_FILES = {CONFIG_FILE, PARTIAL}
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"


def leads() -> bool:
    """Whether this is the process that writes the folder's files."""
    return jax.process_index() == 0


def check(workdir: str, config: Mapping[str, Any], free: Iterable[str] = ()) -> None:
    """Makes sure that a folder is free or belongs to this config; changes nothing.

    Args:
      workdir: the folder.
      config: of the run.
      free: dotted paths of fields that may differ, as they leave the result alone.

    Raises:
      InputError: the folder holds a run of another config (the message names the
        differing fields) or files that no run wrote.
    """
    path = os.path.join(workdir, CONFIG_FILE)
    if tf.io.gfile.exists(path):
        differing = differing_fields(
            leave_out(read_json(path), free), leave_out(as_json(config), free)
        )
        if differing:
            raise InputError(
                f"{workdir} holds a run of another config ({'; '.join(differing)});"
                " give another --workdir or go back to that config"
            )
    # Another process may write the config at this moment.
    elif tf.io.gfile.exists(workdir) and {*tf.io.gfile.listdir(workdir)} - OWN_FILES:
        raise InputError(
            f"{workdir} is not empty and holds no {CONFIG_FILE}, so no run of ours"
            " wrote it; give another --workdir"
        )


def claim(workdir: str, config: Mapping[str, Any]) -> None:
    """Binds a folder that passed `check` to a config."""
    tf.io.gfile.makedirs(workdir)
    write_json(os.path.join(workdir, CONFIG_FILE), config)


def is_claimed(workdir: str) -> bool:
    """Whether the folder belongs to a config."""
    return tf.io.gfile.exists(os.path.join(workdir, CONFIG_FILE))


def is_finished(workdir: str) -> bool:
    """Whether the folder holds a run's results."""
    return tf.io.gfile.exists(os.path.join(workdir, RESULTS_FILE))


def as_json(value: Any) -> Any:
    """The value as a JSON file gives it back: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value))


def read_json(path: str) -> Any:
    """Reads a JSON file; a broken one raises InputError with its path."""
    with tf.io.gfile.GFile(path) as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is not valid JSON: {error}") from error


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file through a temporary name."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: str, text: str) -> None:
    """Writes a text file through a temporary name."""
    write_bytes(path, text.encode())


def write_bytes(path: str, content: bytes) -> None:
    """Writes a file through a temporary name."""
    with writing(path):
        with tf.io.gfile.GFile(path + ".tmp", "wb") as file:
            file.write(content)
        tf.io.gfile.rename(path + ".tmp", path, overwrite=True)


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Says what could not be written where the storage refuses it.

    Raises:
      InputError: the disk is full, the folder read-only or the bucket out of reach.
    """
    try:
        yield
    except (OSError, tf.errors.OpError, ValueError) as error:
        reason = " ".join(str(error).split())
        # Orbax's storage raises ValueError with gRPC's code.
        if isinstance(error, ValueError) and not re.match("[A-Z_]+: ", reason):
            raise
        if len(reason) > 500:  # the cause stands last
            reason = f"{reason[:100]} ... {reason[-400:]}"
        raise InputError(
            f"{path} cannot be written: {reason}; what was written before is"
            " whole, and the same command continues"
        ) from error
