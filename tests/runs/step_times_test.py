import threading
import time

import pytest

from align_jax.runs.step_times import StepTimes
from tests.runs.pace_test import Clock


class Result:
    """A result that is computed when a test says so."""

    def __init__(self):
        self.computed = threading.Event()

    def block_until_ready(self):
        assert self.computed.wait(10)
        return self


def finish(steps, clock, step, result, now):
    clock.now = now
    result.computed.set()
    deadline = time.monotonic() + 10
    while steps.finished < step:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_steps_are_measured_where_the_loop_runs_ahead():
    clock = Clock()
    steps, results = StepTimes(clock), [Result() for _ in range(4)]
    assert (steps.take_deviation(), steps.median()) == (0.0, 0.0)
    for step in (1, 2, 3):  # all at once, at 1000
        steps.add(step, results[step - 1])
    finish(steps, clock, 1, results[0], 1003.0)
    finish(steps, clock, 2, results[1], 1004.0)
    assert steps.moved == 1004.0
    assert steps.take_deviation() == pytest.approx(1.0)  # 3 s and 1 s
    finish(steps, clock, 3, results[2], 1006.0)
    clock.now = 1100.0  # an evaluation
    steps.add(4, results[3])
    finish(steps, clock, 4, results[3], 1102.0)
    assert steps.take_deviation() == 0.0  # 2 s and 2 s
    assert steps.median() == 2.0
    steps.close()
