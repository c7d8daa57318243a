"""Writes metrics to TensorBoard and JSON lines, and shows progress."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tensorflow as tf
import tqdm
from clu import metric_writers

from align_jax import places
from align_jax.errors import NonFiniteError
from align_jax.progress import doing
from align_jax.runs.metric_lines import PART_BYTES, Row, ScalarWriter, open_lines
from align_jax.runs.pace import Pace
from align_jax.runs.workdir import leads

RATE_ADVICE = "lower the learning rate or raise the temperature's floor"
MOMENT_ADVICE = (
    "gradients overflowed, as they do on a batch of black pictures: set"
    " config.optimizer.clip_norm, or remove such pictures,"
)


class CurvesWriter(ScalarWriter):
    """Writes scalars for TensorBoard, one record a call.

    clu's SummaryWriter writes one record a scalar, which takes 25 times as long. In a
    bucket every flush sends a file again from its beginning, so a new file is begun
    after `PART_BYTES`.
    """

    def __init__(self, folder: str) -> None:
        """Opens a new file in the folder."""
        self._folder = folder
        self._open()

    def _open(self) -> None:
        self._bytes = 0
        with places.writing(self._folder):
            self._writer = tf.summary.create_file_writer(self._folder)

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Adds a point to each curve."""
        summary = tf.compat.v1.Summary()
        for name, value in scalars.items():
            summary.value.add(tag=name, simple_value=float(value))
        record = summary.SerializeToString()
        if places.is_url(self._folder) and self._bytes + len(record) > PART_BYTES:
            self.close()
            self._open()
        self._bytes += len(record)
        with places.writing(self._folder), self._writer.as_default():
            tf.summary.experimental.write_raw_pb(record, step)

    def flush(self) -> None:
        """Hands all points to the file system."""
        with places.writing(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        with places.writing(self._folder):
            self._writer.close()


def open_writers(
    workdir: str,
    step: int,
    begun: float | None = None,
    trackers: Sequence[metric_writers.MetricWriter] = (),
) -> tuple[metric_writers.MetricWriter, metric_writers.MetricWriter, list[Row]]:
    """Opens the writers of a run that continues after `step`; see `open_lines`.

    On all but the first process the writers do nothing, and no lines are read.

    Args:
      workdir: path or URL of the run's folder.
      step: number of steps taken before.
      begun: time of the start, in Unix seconds; None is now.
      trackers: further writers, for which no call may wait.

    Returns:
      (writer of metric lines, slower writer of these lines, of TensorBoard's curves and
      of the trackers, lines of the run so far that have scores or measures of time).
    """
    if not leads():
        return metric_writers.MultiWriter([]), metric_writers.MultiWriter([]), []
    lines, past = open_lines(workdir, step, begun)
    curves = CurvesWriter(os.path.join(workdir, "tensorboard"))
    return lines, metric_writers.MultiWriter([lines, curves, *trackers]), past


class StepLog:
    """Writes every step's metrics and shows a bar with loss, pairs/s and time left.

    Metrics stay on the devices until `flush`, so that a step never waits for the one
    before it. TensorBoard gets the last step of each flush. The bar appears when the
    first step is computed, and its speed and time left do not count that step. Without
    a terminal the bar is one line a minute.
    """

    def __init__(
        self,
        lines: metric_writers.MetricWriter,
        writer: metric_writers.MetricWriter,
        pace: Pace,
        start: int,
        total: int,
    ) -> None:
        """Starts a log of the steps after step `start`.

        Args:
          lines: writer for all steps of a flush but the last.
          writer: writer for the last step of a flush.
          pace: clock of the steps; each flush ends one of its intervals.
          start: number of steps taken before.
          total: number of steps of the run.
        """
        self._lines = lines
        self._writer = writer
        self._pace = pace
        self._pending: list[tuple[int, dict]] = []
        self._total = total
        self._bar: tqdm.tqdm | None = None
        self._start = self._step = start

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of a step, which may still be computed on the devices."""
        self._pending.append((step, metrics))
        self._pace.steps.add(step, metrics["loss"])
        self._step = step
        if self._pace.steps.finished > self._start:
            self._show(self._pace.steps.finished)

    def flush(self) -> None:
        """Writes the added metrics, and the measures of pace with the last step's.

        All names get the prefix "train/". The metrics must include "loss". The metric
        "finite" is not written.

        Raises:
          NonFiniteError: a loss or temperature is not finite, or "finite" is False. The
            metrics up to this step are written.
        """
        if not self._pending:
            return
        rows = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending = []
        measures = self._pace.end_interval(len(rows))
        rows[-1] = (rows[-1][0], rows[-1][1] | measures)
        try:
            for step, metrics in rows:
                last = step == rows[-1][0]
                _write_step(self._writer if last else self._lines, step, metrics)
        except NonFiniteError:
            self._writer.flush()
            raise
        self._writer.flush()
        step, metrics = rows[-1]
        speed = measures["pairs_per_second"]
        shown = f"loss {metrics['loss']:.3f}, {speed:.0f} pairs/s"
        self._show(step, shown)

    def _show(self, step: int, text: str | None = None) -> None:
        """Moves the bar to a step, and changes the text after it unless it is None."""
        if self._bar is None:
            interval = 0.5 if sys.stderr.isatty() else 60.0
            self._bar = tqdm.tqdm(
                total=self._total,
                initial=step,
                unit="step",
                dynamic_ncols=True,
                mininterval=interval,
                maxinterval=interval,
                disable=not leads(),
            )
        if text is not None:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    @contextlib.contextmanager
    def scoring(self) -> Iterator[None]:
        """Shows before the bar, inside the `with` statement, that the run evaluates."""
        if self._bar is None:
            with doing("scoring the model before its first step", leads()):
                yield
            return
        with self.showing("scoring"):
            yield

    @contextlib.contextmanager
    def showing(self, activity: str) -> Iterator[None]:
        """Shows an activity before the bar, inside the `with` statement."""
        if self._bar is None:
            yield
            return
        self._bar.set_description(activity)
        try:
            yield
        finally:
            self._bar.set_description()

    def end_bar(self) -> None:
        """Ends the bar's line and the measuring of steps.

        Later text starts on a new line.
        """
        if self._bar is not None:
            self._bar.close()
        self._pace.steps.close()

    def close(self) -> None:
        """Flushes, writes the last totals if steps were taken, closes the `writer`."""
        self.flush()
        self.end_bar()
        if self._step > self._start:
            totals = {f"train/{name}": x for name, x in self._pace.totals().items()}
            self._writer.write_scalars(self._step, totals)
        self._writer.close()


def _write_step(
    writer: metric_writers.MetricWriter, step: int, metrics: dict[str, Any]
) -> None:
    """Writes the metrics of a step but "finite"; see `StepLog.flush`."""
    finite = metrics.pop("finite", True)
    scalars = {f"train/{name}": value for name, value in metrics.items()}
    writer.write_scalars(step, scalars)
    for name in {"loss", "temperature"} & metrics.keys():
        if not np.isfinite(metrics[name]):
            found = f"the {name} of step {step} is {metrics[name]}"
            raise NonFiniteError(found, step, RATE_ADVICE)
    if not finite:
        found = f"a moment or running statistic after step {step} is not finite"
        raise NonFiniteError(found, step, MOMENT_ADVICE)
