"""A run's folder: it belongs to one config, and files appear in it whole or not."""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from align_jax import places
from align_jax.config import differing_fields, leave_out
from align_jax.errors import InputError

CONFIG_FILE = "config.json"
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
    if places.exists(path):
        differing = differing_fields(
            leave_out(places.read_object(path), free), leave_out(as_json(config), free)
        )
        if differing:
            raise InputError(
                f"{workdir} holds a run of another config ({'; '.join(differing)});"
                " give another --workdir or go back to that config"
            )
    # Another process may write the config at this moment, or was killed at that.
    elif not places.is_free(workdir, (CONFIG_FILE, places.TEMPORARY)):
        raise InputError(
            f"{workdir} is not empty and holds no {CONFIG_FILE}, so no run of ours"
            " wrote it; give another --workdir"
        )


def claim(workdir: str, config: Mapping[str, Any]) -> None:
    """Binds a folder that passed `check` to a config."""
    places.make_folder(workdir)
    places.write_json(os.path.join(workdir, CONFIG_FILE), config)


def is_claimed(workdir: str) -> bool:
    """Whether the folder belongs to a config."""
    return places.exists(os.path.join(workdir, CONFIG_FILE))


def is_finished(workdir: str) -> bool:
    """Whether the folder holds a run's results."""
    return places.exists(os.path.join(workdir, RESULTS_FILE))


def as_json(value: Any) -> Any:
    """The value as a JSON file gives it back: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value))
