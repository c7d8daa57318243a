"""A run's folder, which belongs to one config."""

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
    """Returns whether this process writes the folder's files."""
    return jax.process_index() == 0


def check(workdir: str, config: Mapping[str, Any], free: Iterable[str] = ()) -> None:
    """Checks that a folder is unused or belongs to this config; changes nothing.

    Args:
      workdir: path or URL of the folder.
      config: literal config of the run.
      free: dotted paths of fields that may differ, because they do not change results.

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
    # Another process may be writing the config now, or was killed while it did.
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
    """Returns whether the folder belongs to a config."""
    return places.exists(os.path.join(workdir, CONFIG_FILE))


def is_finished(workdir: str) -> bool:
    """Returns whether the folder holds a run's results."""
    return places.exists(os.path.join(workdir, RESULTS_FILE))


def as_json(value: Any) -> Any:
    """Returns a value as JSON reads it back: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value))
