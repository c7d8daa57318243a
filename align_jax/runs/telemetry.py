"""Writes metrics to TensorBoard and JSON lines, shows progress, and takes profiles."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np
import tensorflow as tf
import tqdm
from clu import metric_writers

from align_jax import places
from align_jax.errors import NonFiniteError
from align_jax.runs.pace import DEVICE_HOURS, STARTED, Pace
from align_jax.runs.workdir import METRICS_FILE, leads

TAIL = 1 << 20  # bytes, which hold some thousand lines

RATE_ADVICE = "lower the learning rate or raise the temperature's floor"
MOMENT_ADVICE = (
    "gradients overflowed, as they do on a batch of black pictures: set"
    " config.optimizer.clip_norm, or remove such pictures,"
)


class ScalarWriter(metric_writers.MetricWriter):
    """A clu writer that accepts scalars only."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} writes scalars only")

    write_summaries = write_images = write_videos = write_audios = _refuse
    write_texts = write_histograms = write_pointcloud = write_hparams = _refuse


class JsonLinesWriter(ScalarWriter):
    """Appends scalars to a file, one JSON object a call: {"step": 3, "loss": 0.5}."""

    def __init__(self, path: str) -> None:
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
    """Writes scalars for TensorBoard, one record a call.

    clu's SummaryWriter writes one record a scalar, which takes 25 times as long.
    """

    def __init__(self, folder: str) -> None:
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
    """Opens the writers of a run that continues after `step`.

    The first process rewrites the file of metrics: lines of later steps, written before
    an interruption, are dropped, because these steps run again; so are the scores of
    step 0 if `step` is 0. A new line holds the time of the start. On all other
    processes the writers do nothing.

    Args:
      workdir: path or URL of the run's folder.
      step: number of steps taken before.

    Returns:
      (writer of JSON lines, slower writer of JSON lines and TensorBoard).
    """
    if not leads():
        return (metric_writers.MultiWriter([]),) * 2
    path = os.path.join(workdir, METRICS_FILE)
    rows = read_metrics(workdir)
    kept = [row for row in rows if row["step"] <= step]
    if not step:  # the evaluation at step 0 runs again
        kept = [row for row in kept if STARTED in row]
    spent = max((row.get(DEVICE_HOURS, 0.0) for row in rows), default=0.0)
    kept.append({"step": step, STARTED: time.time(), DEVICE_HOURS: spent})
    places.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    lines = JsonLinesWriter(path)
    curves = CurvesWriter(os.path.join(workdir, "tensorboard"))
    return lines, metric_writers.MultiWriter([lines, curves])


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """Reads a run's metric lines in order, without a half-written last line.

    Returns:
      A dict {"step": ..., name: value} for each line; no dicts if there is no file.
    """
    return list(stream_metrics(workdir))


def stream_metrics(workdir: str) -> Iterator[dict[str, float]]:
    """Yields the lines of `read_metrics` one at a time."""
    path = os.path.join(workdir, METRICS_FILE)
    if places.exists(path):
        with places.opening(path) as file:
            yield from (json.loads(line) for line in file if line.endswith(b"\n"))


def read_last_metrics(workdir: str) -> list[dict[str, float]]:
    """Reads as `read_metrics` the newest lines only, at most `TAIL` bytes of them."""
    path = os.path.join(workdir, METRICS_FILE)
    size = places.size(path)
    if size is None:
        return []
    start = max(0, size - TAIL)
    with places.opening(path) as file:
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in (lines[1:] if start else lines)]


class StepLog:
    """Writes every step's metrics and shows a bar with loss, pairs/s and time left.

    Metrics stay on the devices until `flush`, so that a step never waits for the one
    before it. TensorBoard gets the last step of each flush. Without a terminal the bar
    is one line a minute.
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
        """Adds the metrics of a step, which may still be computed on the devices."""
        self._pending.append((step, metrics))

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
        for step, metrics in rows:
            writer = self._writer if step == rows[-1][0] else self._lines
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
        self._writer.flush()
        step, metrics = rows[-1]
        speed = measures["pairs_per_second"]
        shown = f"loss {metrics['loss']:.3f}, {speed:.0f} pairs/s"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def end_bar(self) -> None:
        """Ends the bar's line, so that later text starts on a new line."""
        self._bar.close()

    def close(self) -> None:
        """Flushes, ends the bar and closes the `writer` of the constructor."""
        self.flush()
        self.end_bar()
        self._writer.close()


class Profile:
    """Traces some steps on the first process, for TensorBoard's profiler.

    The trace is written to the folder `profile` of the workdir.
    """

    def __init__(self, workdir: str, steps: tuple[int, ...]) -> None:
        """Sets the steps to trace: (first, last), both included, or () for none."""
        self._folder = os.path.join(workdir, "profile")
        self._first, self._last = steps if steps and leads() else (0, 0)
        self._traces = False

    def before(self, step: int) -> None:
        """Starts the trace if `step` is to be traced and no trace has begun."""
        if self._first <= step <= self._last and not self._traces:
            jax.profiler.start_trace(self._folder)
            self._traces = True

    def after(self, step: int, outputs: dict[str, jax.Array]) -> None:
        """Ends the trace with the last step, once its outputs are computed."""
        if self._traces and step >= self._last:
            self.close(outputs)

    def close(self, outputs: dict[str, jax.Array] | None = None) -> None:
        """Waits for `outputs`, then ends and writes the trace, if one has begun."""
        if self._traces:
            jax.block_until_ready(outputs)
            jax.profiler.stop_trace()
            self._traces = False
