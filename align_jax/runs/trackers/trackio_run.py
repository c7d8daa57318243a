"""Reports a run to Trackio."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from align_jax.config import as_json
from align_jax.runs.trackers.tracked_run import TrackedRun


@dataclasses.dataclass(frozen=True)
class TrackioConfig:
    """A run in Trackio.

    Attributes:
      project: project of the run.
      group: name that related runs share; None for the name of the folder that holds
        the workdir, which the runs of a sweep share.
      space_id: Space of the Hugging Face hub that shows the project, as "ORG/NAME";
        None for a local database, which is in `TRACKIO_DIR` if that is set.
    """

    project: str = "align_jax"
    group: str | None = None
    space_id: str | None = None


class TrackioRun:
    """A run in Trackio.

    Trackio finds a run by its name, so the name has the id in it.
    """

    Config = TrackioConfig

    def __init__(self, config: TrackioConfig, run: TrackedRun) -> None:
        """Begins or continues the run."""
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=config.project,
            name=f"{run.name}-{run.id}",
            group=config.group or run.group,
            space_id=config.space_id,
            config=as_json(run.fields),
            resume="allow",
            embed=False,
            # Only our numbers.
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one row."""
        self._run.log(dict(scalars), step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds one row of pictures (H, W, 3) uint8."""
        pictures = {name: self._trackio.Image(array) for name, array in images.items()}
        self._run.log(pictures, step)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Sends alerts."""
        for title, text in texts.items():
            self._run.alert(title, text, self._trackio.AlertLevel.ERROR, step)

    def flush(self) -> None:
        """Does nothing: a thread of Trackio writes the rows twice a second."""

    def close(self) -> None:
        """Waits until all is written."""
        self._run.finish()
