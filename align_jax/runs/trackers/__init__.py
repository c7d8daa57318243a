"""Experiment trackers: each shows the numbers and pictures of a run in another program.

A new tracker is one file, with a class that fulfils `Tracker`, and one line in
`TRACKERS`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from align_jax.runs.trackers.tracked_run import TrackedRun
from align_jax.runs.trackers.trackio_run import TrackioRun
from align_jax.runs.trackers.wandb_run import WandbRun


class Tracker(Protocol):
    """Reports one run, with the methods of clu's `MetricWriter`.

    All calls come from one thread, which is not the one that trains. So they may take
    long, and an error ends the tracker and not the run.

    Attributes:
      Config: dataclass of the tracker's fields in `config.trackers`.
    """

    Config: type[Any]

    def __init__(self, config: Any, run: TrackedRun) -> None:
        """Begins the run in the tracker, or continues the one that has `run.id`.

        Args:
          config: instance of `Config`.
          run: the run to report.
        """

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds numbers by name; a step may have several calls, with other names."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures (H, W, 3) of type uint8, by name."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Sends alerts {title: text}; the run has ended with an error."""

    def flush(self) -> None:
        """Makes sure that the numbers so far are on their way."""

    def close(self) -> None:
        """Ends the run in the tracker."""


# The keys are also the names of the packages.
TRACKERS: dict[str, type[Tracker]] = {"wandb": WandbRun, "trackio": TrackioRun}
