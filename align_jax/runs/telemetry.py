"""Metrics to TensorBoard and JSON lines through clu, a progress bar, and profiles."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
import tensorflow as tf
import tqdm
from clu import metric_writers

from align_jax import places
from align_jax.runs.pace import DEVICE_HOURS, STARTED, Pace
from align_jax.runs.workdir import METRICS_FILE, leads

TAIL = 1 << 20  # bytes: some thousand lines


class ScalarWriter(metric_writers.MetricWriter):
    """A writer of scalars and nothing else."""

    def _refuse(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} writes scalars only")

    write_summaries = write_images = write_videos = write_audios = _refuse
    write_texts = write_histograms = write_pointcloud = write_hparams = _refuse


class JsonLinesWriter(ScalarWriter):
    """Appends scalars to a file, one JSON object a call: {"step": 3, "loss": 0.5}."""

    def __init__(self, path: str):
        """Opens the file for appending."""
        self._path = path
        self._closing = contextlib.ExitStack()
        self._file = self._closing.enter_context(places.appending(path))

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Appends one line."""
        values = {name: float(value) for name, value in scalars.items()}
        with places.writing(self._path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")

    def flush(self) -> None:
        """Hands all lines to the file system."""
        with places.writing(self._path):
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._closing.close()


class CurvesWriter(ScalarWriter):
    """Writes scalars for TensorBoard, a call's as one record.

    clu's SummaryWriter makes a record of each, which takes 25 times as long.
    """

    def __init__(self, folder: str):
        """Opens a new file in the folder."""
        self._folder = folder
        with places.writing(folder):
            self._writer = tf.summary.create_file_writer(folder)

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Adds a point to each curve."""
        summary = tf.compat.v1.Summary()
        for name, value in scalars.items():
            summary.value.add(tag=name, simple_value=float(value))
        with places.writing(self._folder), self._writer.as_default():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step)

    def flush(self) -> None:
        """Hands all points to the file system."""
        with places.writing(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


def open_writers(
    workdir: str, step: int
) -> tuple[metric_writers.MetricWriter, metric_writers.MetricWriter]:
    """Opens the writers of a run that continues after `step`; one process has them.

    Lines of later steps, written before an interruption, are dropped: they will be
    written again. A line tells when the run was started.

    Returns:
      (writer of JSON lines, writer of these and to TensorBoard, which is the slower).
    """
    if not leads():
        return (metric_writers.MultiWriter([]),) * 2
    path = os.path.join(workdir, METRICS_FILE)
    rows = read_metrics(workdir)
    kept = [row for row in rows if row["step"] <= step]
    if not step:  # an evaluation at step 0 is made again
        kept = [row for row in kept if STARTED in row]
    spent = max((row.get(DEVICE_HOURS, 0.0) for row in rows), default=0.0)
    kept.append({"step": step, STARTED: time.time(), DEVICE_HOURS: spent})
    places.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    lines = JsonLinesWriter(path)
    curves = CurvesWriter(os.path.join(workdir, "tensorboard"))
    return lines, metric_writers.MultiWriter([lines, curves])


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """Reads a run's metric lines in order; a half-written last line is left out."""
    return list(stream_metrics(workdir))


def stream_metrics(workdir: str) -> Iterator[dict[str, float]]:
    """Yields what `read_metrics` lists."""
    path = os.path.join(workdir, METRICS_FILE)
    if places.exists(path):
        with places.opening(path) as file:
            yield from (json.loads(line) for line in file if line.endswith(b"\n"))


def read_last_metrics(workdir: str) -> list[dict[str, float]]:
    """The newest lines of `read_metrics`, as many as `TAIL` holds."""
    path = os.path.join(workdir, METRICS_FILE)
    size = places.size(path)
    if size is None:
        return []
    start = max(0, size - TAIL)
    with places.opening(path) as file:
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in (lines[1:] if start else lines)]


class NonFiniteError(FloatingPointError):
    """The loss or temperature of a step is not finite.

    Attributes:
      step: the step.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class StepLog:
    """Writes every step's metrics and shows a bar with loss, pairs/s and time left.

    Metrics stay on the devices until `flush`, so that a step never waits for the one
    before it; TensorBoard gets those of the last step. Without a terminal the bar is a
    line a minute.
    """

    def __init__(
        self,
        lines: metric_writers.MetricWriter,
        writer: metric_writers.MetricWriter,
        pace: Pace,
        start: int,
        total: int,
    ):
        """Logs what follows step `start`.

        Args:
          lines: gets the steps between two flushes.
          writer: gets a flush's last step.
          pace: each flush ends one of its intervals.
          start: the steps taken.
          total: those of the run.
        """
        self._lines = lines
        self._writer = writer
        self._pace = pace
        self._pending: list[tuple[int, dict]] = []
        interval = 0.5 if sys.stderr.isatty() else 60.0
        self._bar = tqdm.tqdm(
            total=total,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            mininterval=interval,
            maxinterval=interval,
            disable=not leads(),
        )

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step, still on the devices."""
        self._pending.append((step, metrics))

    def flush(self) -> None:
        """Writes what was added; the last step's line has the measures of pace.

        Raises:
          NonFiniteError: a loss or temperature is not finite; names the step.
        """
        if not self._pending:
            return
        rows = [(step, jax.device_get(metrics)) for step, metrics in self._pending]
        self._pending = []
        measures = self._pace.end_interval(len(rows))
        rows[-1] = (rows[-1][0], rows[-1][1] | measures)
        for step, metrics in rows:
            writer = self._writer if step == rows[-1][0] else self._lines
            scalars = {f"train/{name}": value for name, value in metrics.items()}
            writer.write_scalars(step, scalars)
            for name in {"loss", "temperature"} & metrics.keys():
                if not np.isfinite(metrics[name]):
                    raise NonFiniteError(
                        f"the {name} of step {step} is {metrics[name]}; the last"
                        " checkpoint is whole: lower the learning rate or raise"
                        " the temperature's floor, in a new workdir",
                        step,
                    )
        self._writer.flush()
        step, metrics = rows[-1]
        speed = measures["pairs_per_second"]
        shown = f"loss {metrics['loss']:.3f}, {speed:.0f} pairs/s"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def end_bar(self) -> None:
        """Ends the bar's line, so that what follows has a line of its own."""
        self._bar.close()

    def close(self) -> None:
        """Writes what is left and ends the bar."""
        self.flush()
        self.end_bar()
        self._writer.close()


class Profile:
    """Traces some steps, on one process, for TensorBoard's profiler."""

    def __init__(self, workdir: str, steps: tuple[int, int] | tuple[()]):
        """Traces from the first to the last of `steps`, both inside; () for none."""
        self._folder = os.path.join(workdir, "profile")
        self._first, self._last = steps if steps and leads() else (0, 0)
        self._traces = False

    def before(self, step: int) -> None:
        """Starts where a step is the first or, after an interruption, a later one."""
        if self._first <= step <= self._last and not self._traces:
            jax.profiler.start_trace(self._folder)
            self._traces = True

    def after(self, step: int, outputs: dict[str, jax.Array]) -> None:
        """Ends with the last step, once its outputs are there."""
        if self._traces and step >= self._last:
            self.close(outputs)

    def close(self, outputs: dict[str, jax.Array] | None = None) -> None:
        """Writes what is traced."""
        if self._traces:
            jax.block_until_ready(outputs)
            jax.profiler.stop_trace()
            self._traces = False
