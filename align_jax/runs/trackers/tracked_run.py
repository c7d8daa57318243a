"""The run that a tracker reports."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from align_jax import places


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it.

    Attributes:
      workdir: path or URL of the run's folder.
      id: identifier of the run in the tracker, the same after every restart.
      fields: the run's literal config, with its defaults.
    """

    workdir: str
    id: str
    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return os.path.basename(self._path)

    @property
    def group(self) -> str:
        """Name of the folder that holds the run's folder; a sweep's runs share it."""
        return os.path.basename(os.path.dirname(self._path))

    @property
    def _path(self) -> str:
        return places.resolve(self.workdir).rstrip("/")
