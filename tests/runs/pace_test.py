import types

import jax
import pytest

from align_jax.devices.known import Device
from align_jax.runs import pace
from align_jax.runs.pace import DEVICE_HOURS, PRODUCTIVE, STARTED, Pace


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_an_interval_is_measured_by_hand():
    clock = Clock()
    measured = Pace(batch_size=16, flops={"a": 3e12, "b": 1e12}, past=[], clock=clock)
    clock.now += 100.0  # compiling
    measured.restart()
    for _ in range(4):
        with measured.waiting():
            clock.now += 0.5
        clock.now += 2.0
    found = measured.end_interval(steps=4)
    devices = jax.device_count()
    assert found["pairs_per_second"] == pytest.approx(4 * 16 / 10)
    assert found["pairs_per_second_per_device"] == pytest.approx(6.4 / devices)
    assert found["tflops_per_second_per_device"] == pytest.approx(1.6 / devices)
    assert found["input_wait"] == pytest.approx(2 / 10)
    assert found["productive_seconds"] == pytest.approx(10)
    assert found["goodput"] == pytest.approx(10 / 110)
    assert found["device_hours"] == pytest.approx(devices * 110 / 3600)
    assert 0.05 < found["host_memory_peak_gib"] < 1000
    assert "model_flops_utilisation" not in found  # a CPU's peak is not known
    clock.now += 5.0
    assert measured.end_interval(steps=1)["input_wait"] == 0.0


def test_goodput_counts_what_an_interruption_lost():
    clock = Clock()
    past = [
        {"step": 0, STARTED: 900.0},
        {"step": 10, PRODUCTIVE: 40.0, DEVICE_HOURS: 2.0},
        {"step": 10, STARTED: 990.0},
    ]
    resumed = Pace(batch_size=1, flops={}, past=past, clock=clock)
    clock.now += 60.0
    found = resumed.end_interval(steps=1)
    assert found["goodput"] == pytest.approx((40 + 60) / 160)
    added = jax.device_count() * 60 / 3600
    assert found["device_hours"] == pytest.approx(2.0 + added)


def test_a_known_device_has_a_utilisation_and_tells_its_memory(monkeypatch):
    held = {"peak_bytes_in_use": 3 * 2**30}
    chip = types.SimpleNamespace(device_kind="a chip", memory_stats=lambda: held)
    monkeypatch.setattr(pace, "DEVICES", {"a chip": Device(16, peak_flops=4e12)})
    monkeypatch.setattr(jax, "local_devices", lambda: [chip])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    clock = Clock()
    measured = Pace(batch_size=1, flops={"a": 6e12}, past=[], clock=clock)
    clock.now += 1.0
    found = measured.end_interval(steps=1)
    assert found["model_flops_utilisation"] == pytest.approx(0.75)
    assert found["device_memory_peak_gib"] == 3.0
