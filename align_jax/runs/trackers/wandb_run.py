"""Reports a run to Weights & Biases."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from align_jax import places
from align_jax.config import check_choices
from align_jax.errors import InputError
from align_jax.runs.trackers.tracked_run import TrackedRun

ONLINE, OFFLINE = "online", "offline"
TITLE = 64  # characters of an alert's title


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """A run in Weights & Biases.

    Attributes:
      project: project of the run.
      entity: user or team that owns the project; None for the default of the login.
      group: name that related runs share; None for the name of the folder that holds
        the workdir, which the runs of a sweep share.
      mode: "online", or "offline" for files that `wandb sync` uploads later.
    """

    project: str = "align_jax"
    entity: str | None = None
    group: str | None = None
    mode: str = ONLINE

    def __post_init__(self) -> None:
        check_choices(self, {"mode": (ONLINE, OFFLINE)})


class WandbRun:
    """A run in Weights & Biases, with our step as the axis of its curves.

    W&B's own count of steps only grows, so it would refuse the scores of a step whose
    other numbers were sent before a restart.
    """

    Config = WandbConfig

    def __init__(self, config: WandbConfig, run: TrackedRun) -> None:
        """Begins or continues the run.

        W&B's files are in the workdir, or in the current folder if that is a URL.

        Raises:
          InputError: nobody is logged in, and the mode is online.
        """
        import wandb

        if config.mode == ONLINE and not wandb.login(prompt=False):
            raise InputError(
                "nobody is logged in to Weights & Biases; run `wandb login`, or set"
                " config.trackers.wandb.mode = 'offline'"
            )
        self._wandb = wandb
        self._failed = False
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group or run.group,
            name=run.name,
            id=run.id,
            resume="allow" if config.mode == ONLINE else None,
            mode=cast(Any, config.mode),
            dir=None if places.is_url(run.workdir) else run.workdir,
            config=dict(run.fields),
            reinit="create_new",
            # It leaves our output alone and prints nothing.
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")
        if config.mode == ONLINE:
            print(f"wandb: {self._run.url}", file=sys.stderr, flush=True)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one row."""
        self._run.log({"step": step, **scalars})

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds one row of pictures (H, W, 3) uint8."""
        pictures = {name: self._wandb.Image(array) for name, array in images.items()}
        self._run.log({"step": step, **pictures})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Sends alerts, and marks the run as failed."""
        self._failed = True
        for title, text in texts.items():
            self._run.alert(title[: TITLE - 1], f"step {step}: {text}", level="ERROR")

    def flush(self) -> None:
        """Does nothing: a process of W&B sends the rows."""

    def close(self) -> None:
        """Waits until all is sent or, in the offline mode, written."""
        self._run.finish(exit_code=int(self._failed))
