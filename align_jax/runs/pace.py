"""Measures a run's speed, waiting for input, utilisation, goodput and memory."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import jax

from align_jax.devices.known import DEVICES

GIB = 2**30
PRODUCTIVE = "train/productive_seconds"  # total of the steps that were kept
DEVICE_HOURS = "train/device_hours"  # total over all restarts
STARTED = "run/started_unix_seconds"


class Pace:
    """Measures the steps between two flushes of the metrics.

    Productive time is the time of the steps that a run kept. It excludes compiling,
    evaluating, steps lost to an interruption, and the interruption itself. Device hours
    count the time from the construction of a `Pace` to its last flush, on every device,
    over all starts of the run. So they include compiling, evaluating and lost steps.
    """

    def __init__(
        self,
        batch_size: int,
        flops: Mapping[str, float],
        past: list[dict[str, float]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Starts the clock.

        Args:
          batch_size: pairs a step.
          flops: floating-point operations a step on all devices, by part of the model.
          past: metric lines of the run so far, see `read_metrics`.
          clock: function that returns the time in Unix seconds.
        """
        self._batch_size = batch_size
        self._flops = sum(flops.values())
        self._devices = jax.local_devices()
        self._clock = clock
        self._productive = max((row.get(PRODUCTIVE, 0.0) for row in past), default=0.0)
        self._spent = max((row.get(DEVICE_HOURS, 0.0) for row in past), default=0.0)
        self._ready = now = clock()
        self._begun = min(row.get(STARTED, now) for row in [*past, {}])
        self.restart()

    def restart(self) -> None:
        """Starts a new interval; the time since the last one ended does not count."""
        self._since = self._clock()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside the `with` statement as waiting for input."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    def end_interval(self, steps: int) -> dict[str, float]:
        """Ends an interval of some steps and starts a new one.

        Returns:
          Measures by name, with units in the names. "input_wait" is the fraction of the
          interval spent waiting for input, "goodput" the fraction of the time since the
          run's first start that was productive. "productive_seconds" and "device_hours"
          are totals of the run, both "..._peak_gib" those of this process.
          "model_flops_utilisation", a fraction of the peak, is absent for devices that
          `DEVICES` lacks, "device_memory_peak_gib" for devices that do not report it.
        """
        now, waited = self._clock(), self._waited
        seconds = now - self._since
        self._productive += seconds
        self.restart()
        speed = steps * self._batch_size / seconds
        flops = steps * self._flops / seconds / jax.device_count()
        kind = self._devices[0].device_kind
        measures = {
            "pairs_per_second": speed,
            "pairs_per_second_per_device": speed / jax.device_count(),
            "tflops_per_second_per_device": flops / 1e12,
            "input_wait": waited / seconds,
            "productive_seconds": self._productive,
            "device_hours": self._spent
            + (now - self._ready) * jax.device_count() / 3600,
            "goodput": self._productive / (now - self._begun),
            "host_memory_peak_gib": _host_memory_peak() / GIB,
        }
        if kind in DEVICES:
            measures["model_flops_utilisation"] = flops / DEVICES[kind].peak_flops
        held = [device.memory_stats() for device in self._devices]
        if all(held):  # CPUs report nothing
            peak = max(stats["peak_bytes_in_use"] for stats in held)
            measures["device_memory_peak_gib"] = peak / GIB
        return measures


def _host_memory_peak() -> int:
    """Returns the largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
