"""Measures a run's speed, waiting for input, utilisation, goodput and memory."""

import contextlib
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import tensorstore

from align_jax.devices.exchange import gather
from align_jax.devices.known import DEVICES
from align_jax.runs.lost_time import (
    LOST,
    PRODUCTIVE,
    STEPS,
    WALL,
    Timesheet,
    lost,
)
from align_jax.runs.step_times import StepTimes

GIB = 2**30
GOODPUT = "train/goodput"
DEVICE_HOURS = "train/device_hours"  # total over all restarts
OPERATIONS = "train/model_tflops"  # of the model so far, nothing computed twice
STARTED = "run/started_unix_seconds"  # when the process of a start began
# Metrics that only grow over a run.
TOTALS = {PRODUCTIVE, WALL, DEVICE_HOURS, *map(lost, LOST)}
# Measures of runs with several processes.
SLOWEST = ("slowest_input_wait", "slowest_process")


def carry_totals(
    largest: Mapping[str, float], past: Sequence[Mapping[str, float]], begun: float
) -> dict[str, float]:
    """Returns the totals that a new start continues, for its first metric line.

    Args:
      largest: largest value of each of `TOTALS` in all metric lines, also in those of
        steps that run again.
      past: metric lines that count, see `open_lines`.
      begun: time at which this start's process began, in Unix seconds.
    """
    totals = {name: largest.get(name, 0.0) for name in (DEVICE_HOURS, *map(lost, LOST))}
    kept = max((row.get(PRODUCTIVE, 0.0) for row in past), default=0.0)
    totals[lost("repeated")] += largest.get(PRODUCTIVE, 0.0) - kept
    if WALL in largest:  # absent in the lines of earlier versions
        first = min(row.get(STARTED, begun) for row in [*past, {}])
        totals[lost("away")] += max(0.0, begun - (first + largest[WALL]))
    return totals


class Pace:
    """Measures the steps between two flushes of the metrics.

    Productive time is the time of the steps that a run kept. It excludes everything in
    `LOST`. Device hours count the time from the construction of a `Pace` to its last
    flush, on every device, over all starts of the run. So they include compiling,
    evaluating and lost steps.

    Attributes:
      times: causes of the time of this start.
      steps: times of the steps of this start.
    """

    def __init__(
        self,
        batch_size: int,
        flops: Mapping[str, float],
        past: Sequence[Mapping[str, float]],
        times: Timesheet | None = None,
    ) -> None:
        """Starts the first interval.

        Args:
          batch_size: pairs a step.
          flops: floating-point operations a step on all devices, by part of the model.
          past: metric lines of the run so far, see `read_metrics`.
          times: causes of the time since the start; None starts with a step, now.
        """
        self.times = times or Timesheet(cause=STEPS)
        self.steps = StepTimes(self.times.clock)
        self.change(batch_size, flops)
        self._operations = max((row.get(OPERATIONS, 0.0) for row in past), default=0.0)
        self._devices = jax.local_devices()
        self._past = {
            name: max((row.get(name, 0.0) for row in past), default=0.0)
            for name in TOTALS
        }
        self._ready = self.times.clock()
        self._begun = min(row.get(STARTED, self.times.begun) for row in [*past, {}])
        self._ended = self.times.read()

    def change(self, batch_size: int, flops: Mapping[str, float]) -> None:
        """Changes the work of a step, right after the end of an interval.

        Args:
          batch_size: pairs a step.
          flops: floating-point operations a step on all devices, by part of the model.
        """
        self._batch_size, self._flops = batch_size, sum(flops.values())

    @contextlib.contextmanager
    def waiting(self, step: int) -> Iterator[None]:
        """Counts the time inside the `with` statement as waiting for a step's batch."""
        with self.times.doing("input" if self.steps.begun else "first_batch"):
            yield
        self.steps.begun = step

    def end_interval(self, steps: int) -> dict[str, float]:
        """Ends an interval of some steps and starts a new one.

        In a run of several processes, all of them must call this.

        Returns:
          Measures by name, with units in the names, and `totals`. "model_tflops" is the
          model's work since the first step of the run. "input_wait" is the
          fraction of the interval spent waiting for input; "slowest_input_wait" is the
          largest of all processes and "slowest_process" the number of that process,
          both only if there are several. "step_seconds_deviation" is the standard
          deviation of the steps' times on the devices. Both "..._peak_gib" and
          "checkpoint_retries" are those of this process. "model_flops_utilisation", a
          fraction of the peak, is absent for devices that `DEVICES` lacks,
          "device_memory_peak_gib" for devices that do not report it.
        """
        now, before = self.times.read(), self._ended
        self._ended = now
        spent = {cause: now[cause] - before[cause] for cause in now}
        waited = spent["input"] + spent["first_batch"]
        seconds = waited + spent[STEPS] + spent["save"]
        speed = steps * self._batch_size / seconds
        self._operations += steps * self._flops / 1e12
        flops = steps * self._flops / seconds / jax.device_count()
        kind = self._devices[0].device_kind
        measures = {
            "pairs_per_second": speed,
            "pairs_per_second_per_device": speed / jax.device_count(),
            "tflops_per_second_per_device": flops / 1e12,
            "model_tflops": self._operations,
            "input_wait": waited / seconds,
            "step_seconds_deviation": self.steps.take_deviation(),
            "host_memory_peak_gib": _host_memory_peak() / GIB,
            "checkpoint_retries": _checkpoint_retries(),
            **self.totals(),
        }
        if jax.process_count() > 1:
            wait = np.float32(waited / seconds)
            waits = gather(wait)  # (processes,)
            slowest = float(waits.max()), int(waits.argmax())
            measures |= zip(SLOWEST, slowest, strict=True)
        if kind in DEVICES:
            measures["model_flops_utilisation"] = flops / DEVICES[kind].peak_flops
        held = [device.memory_stats() for device in self._devices]
        if all(held):  # CPUs report nothing
            peak = max(stats["peak_bytes_in_use"] for stats in held)
            measures["device_memory_peak_gib"] = peak / GIB
        return measures

    def totals(self) -> dict[str, float]:
        """Returns the totals of the run so far, over all of its starts.

        "wall_seconds" is the time since the run's first start. It is the sum of
        "productive_seconds" and the "lost_..._seconds", except that nobody knows how
        an earlier version of this code spent its time. "goodput" is the productive
        fraction.
        """
        now, past = self.times.read(), self._past
        clock = self.times.clock()
        productive = past[PRODUCTIVE] + now[STEPS]
        wall = clock - self._begun
        hours = (clock - self._ready) * jax.device_count() / 3600
        totals = {
            PRODUCTIVE: productive,
            WALL: wall,
            DEVICE_HOURS: past[DEVICE_HOURS] + hours,
            GOODPUT: productive / wall if wall else 0.0,
            **{lost(cause): past[lost(cause)] + now[cause] for cause in LOST},
        }
        return {name.removeprefix("train/"): value for name, value in totals.items()}


def _checkpoint_retries() -> float:
    """Returns how often TensorStore repeated a request to Cloud Storage so far.

    TensorStore reads and writes the arrays of checkpoints.
    """
    counter = "/tensorstore/kvstore/gcs/retries"
    found = tensorstore.experimental_collect_matching_metrics(counter)
    return sum(value["value"] for metric in found for value in metric["values"])


def _host_memory_peak() -> int:
    """Returns the largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
