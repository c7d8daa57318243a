"""One run of a sweep as a config of its own."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from align_jax.config import change


def choose_run(
    runs: Mapping[str, tuple[ConfigDict, Mapping[str, Any]]], name: str
) -> ConfigDict:
    """The config of the run of some name.

    Args:
      runs: of the sweep, name -> (base config, {dotted path: changed value}).
      name: of the run.
    """
    if name not in runs:
        raise ValueError(f"no run {name!r}; known: {', '.join(runs)}")
    base, changes = runs[name]
    return ConfigDict(change(base.to_dict(), changes.items()))
