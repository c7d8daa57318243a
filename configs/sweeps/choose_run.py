"""Makes a config of one run of a sweep."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from align_jax.config import change


def choose_run(
    runs: Mapping[str, tuple[ConfigDict, Mapping[str, Any]]], name: str
) -> ConfigDict:
    """Returns the config of one run of a sweep.

    Args:
      runs: all runs of the sweep, name -> (base config, {dotted path: changed value}).
      name: name of the run.
    """
    if name not in runs:
        raise ValueError(f"no run {name!r}; known: {', '.join(runs)}")
    base, changes = runs[name]
    return ConfigDict(change(base.to_dict(), changes.items()))
