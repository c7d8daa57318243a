import json
import time
import types

import jax
import pytest

from align_jax.devices.known import Device
from align_jax.runs import pace
from align_jax.runs.lost_time import (
    LOST,
    STEPS,
    WALL,
    Timesheet,
    list_causes,
    lost,
    process_started,
    split_time,
)
from align_jax.runs.metric_lines import open_lines, read_metrics
from align_jax.runs.pace import DEVICE_HOURS, OPERATIONS, PRODUCTIVE, STARTED, Pace

LOADED = time.time()


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_an_interval_is_measured_by_hand():
    clock = Clock()
    times = Timesheet(clock=clock)
    measured = Pace(batch_size=16, flops={"a": 3e12, "b": 1e12}, past=[], times=times)
    clock.now += 100.0  # compiling
    times.switch(STEPS)
    for step in range(1, 5):
        with measured.waiting(step):
            clock.now += 0.5
        clock.now += 2.0
    found = measured.end_interval(steps=4)
    devices = jax.device_count()
    assert found["pairs_per_second"] == pytest.approx(4 * 16 / 10)
    assert found["pairs_per_second_per_device"] == pytest.approx(6.4 / devices)
    assert found["tflops_per_second_per_device"] == pytest.approx(1.6 / devices)
    assert found["input_wait"] == pytest.approx(2 / 10)
    assert found["productive_seconds"] == pytest.approx(8)
    assert found["goodput"] == pytest.approx(8 / 110)
    assert found["device_hours"] == pytest.approx(devices * 110 / 3600)
    assert 0.05 < found["host_memory_peak_gib"] < 1000
    assert found["checkpoint_retries"] == 0  # nothing is in a bucket
    assert "model_flops_utilisation" not in found  # a CPU's peak is not known
    clock.now += 5.0
    assert measured.end_interval(steps=1)["input_wait"] == 0.0


def test_the_work_of_each_phase_is_counted_over_restarts():
    clock = Clock()
    past = [{"step": 9, OPERATIONS: 50.0}, {"step": 4, OPERATIONS: 20.0}]
    times = Timesheet(cause=STEPS, clock=clock)
    measured = Pace(batch_size=16, flops={"a": 3e12}, past=past, times=times)
    clock.now += 2.0
    found = measured.end_interval(steps=4)
    assert found["pairs_per_second"] == pytest.approx(32)
    assert found["model_tflops"] == pytest.approx(50 + 4 * 3)
    measured.change(batch_size=8, flops={"a": 4e12, "b": 2e12})
    clock.now += 1.0
    found = measured.end_interval(steps=2)
    assert found["pairs_per_second"] == pytest.approx(16)
    speed = found["tflops_per_second_per_device"] * jax.device_count()
    assert speed == pytest.approx(12)
    assert found["model_tflops"] == pytest.approx(62 + 2 * 6)


def test_goodput_counts_what_an_interruption_lost():
    clock = Clock()
    past = [
        {"step": 0, STARTED: 900.0},
        {"step": 10, PRODUCTIVE: 40.0, DEVICE_HOURS: 2.0},
        {"step": 10, STARTED: 990.0},
    ]
    times = Timesheet(cause=STEPS, clock=clock)
    resumed = Pace(batch_size=1, flops={}, past=past, times=times)
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
    times = Timesheet(cause=STEPS, clock=clock)
    measured = Pace(batch_size=1, flops={"a": 6e12}, past=[], times=times)
    clock.now += 1.0
    found = measured.end_interval(steps=1)
    assert found["model_flops_utilisation"] == pytest.approx(0.75)
    assert found["device_memory_peak_gib"] == 3.0


def start(workdir, clock, step, begun):
    """Starts or continues a run as `train` does; each cause takes another time."""
    times = Timesheet(begun, clock=clock)
    clock.now = begun + 3.0
    with times.doing("restore"):
        clock.now += 5.0
    lines, past = open_lines(str(workdir), step, begun)
    pace = Pace(1, {}, past, times)
    clock.now += 1.0
    with times.doing("evaluation"):
        clock.now += 7.0
    times.switch("compile")
    clock.now += 20.0
    times.switch(STEPS)
    return lines, pace


def take(lines, pace, clock, steps):
    """Takes some steps, two to a flush; the third of each start is saved."""
    for count, step in enumerate(steps, 1):
        with pace.waiting(step):
            clock.now += 0.25 if count > 1 else 2.0
        clock.now += 10.0
        if count % 2 == 0:
            measures = pace.end_interval(2)
            row = {f"train/{name}": value for name, value in measures.items()}
            lines.write_scalars(step, row)
            lines.flush()
        if count == 3:
            with pace.times.doing("save"):
                clock.now += 0.5


def check_sum(row):
    parts = row[PRODUCTIVE] + sum(row[lost(cause)] for cause in LOST)
    assert parts == pytest.approx(row[WALL], abs=1e-6)
    assert row["train/goodput"] == pytest.approx(row[PRODUCTIVE] / row[WALL])


def test_the_causes_of_lost_time_add_up_over_two_kills(tmp_path):
    clock = Clock()
    take(*start(tmp_path, clock, 0, begun=1000.0), clock, range(1, 8))  # killed in 7
    row = read_metrics(str(tmp_path))[-1]
    check_sum(row)
    assert row["step"] == 6
    assert row[PRODUCTIVE] == 60.0
    wanted = {
        **{"start_up": 4, "restore": 5, "compile": 20, "first_batch": 2, "input": 1.25},
        **{"save": 0.5, "evaluation": 7, "repeated": 0, "away": 0},
    }
    assert {cause: row[lost(cause)] for cause in LOST} == pytest.approx(wanted)
    seen = 1000.0 + row[WALL]

    # Steps 4 to 6 run again. Step 7 was never written, so it counts as away.
    take(*start(tmp_path, clock, 3, begun=seen + 100.0), clock, range(4, 6))
    row = read_metrics(str(tmp_path))[-1]
    check_sum(row)
    # The line of step 2 is the last one before step 3: it has the time of two steps.
    assert row[PRODUCTIVE] == 20.0 + 20.0
    assert row[lost("repeated")] == 40.0
    assert row[lost("away")] == pytest.approx(100.0)
    assert row[lost("compile")] == 40.0
    assert row[lost("first_batch")] == 4.0

    begun = 1000.0 + row[WALL] + 11.0
    _, pace = start(tmp_path, clock, 5, begun)  # nothing runs again
    with pace.waiting(6):
        clock.now += 0.25
    clock.now += 10.0
    end = {f"train/{name}": value for name, value in pace.totals().items()}
    check_sum(end)
    assert end[WALL] == clock.now - 1000.0
    assert end[PRODUCTIVE] == 50.0
    assert end[lost("repeated")] == 40.0
    assert end[lost("away")] == pytest.approx(111.0)
    assert sum(split_time(end).values()) == pytest.approx(end[WALL])


def test_a_start_is_described_by_its_causes_in_seconds():
    clock = Clock()
    times = Timesheet(clock=clock)
    clock.now += 5
    with times.doing("restore"):
        clock.now += 2.5
    times.switch("compile")
    clock.now += 30
    assert list_causes(times.read()) == [
        "   37.5 s  before the first step:",
        "    5.0 s  start-up: imports, checks, opening data",
        "    2.5 s  reading or making the first state",
        "   30.0 s  compiling",
    ]


def test_an_evaluation_that_is_left_early_ends_its_time():
    clock = Clock()
    times = Timesheet(cause=STEPS, clock=clock)

    @times.doing("evaluation")
    def evaluate():
        clock.now += 3.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate()
    clock.now += 1.0
    assert times.read() == dict.fromkeys(LOST, 0.0) | {"evaluation": 3.0, STEPS: 1.0}


def test_a_run_of_an_earlier_version_goes_on_without_inventing_its_past(tmp_path):
    rows = [
        {"step": 0, STARTED: 900.0, DEVICE_HOURS: 0.0},
        {"step": 4, PRODUCTIVE: 40.0, DEVICE_HOURS: 2.0},
        {"step": 6, PRODUCTIVE: 60.0, DEVICE_HOURS: 3.0},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    _, past = open_lines(str(tmp_path), 4, 1000.0)
    assert past[-1][lost("repeated")] == 20.0
    assert past[-1][lost("away")] == 0.0  # nobody wrote when the last process ended
    assert past[-1][DEVICE_HOURS] == 3.0
    assert split_time(rows[-1]) == {}


def test_this_process_was_started_before_its_modules_were_loaded():
    assert LOADED - 24 * 3600 < process_started() < LOADED
