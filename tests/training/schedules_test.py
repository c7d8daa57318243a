import math

import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.training.optimizer import OptimizerConfig
from align_jax.training.schedules import COOLDOWNS, ScheduleConfig, make_schedule
from align_jax.training.training_runs import read_run_config
from tests import tiny


def rates(steps, total, **fields):
    """Returns the rates of a peak of 2 after a warm-up of 4 steps."""
    fields = {"learning_rate": 2.0, "warmup_steps": 4} | fields
    schedule = make_schedule(read_config(ScheduleConfig, fields), total)
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0.0, 1.0, 2.0, 1.0, 0.0]),
        ({"decay": "cosine"}, [0.0, 1.0, 2.0, 1.0, 0.0]),
        ({"decay": "constant"}, [0.0, 1.0, 2.0, 2.0, 2.0]),
        (
            {"decay": "staircase", "staircase_steps": 3, "staircase_factor": 0.5},
            [0.0, 1.0, 2.0, 1.0, 0.5],
        ),
    ],
)
def test_the_rate_rises_then_falls(fields, expected):
    np.testing.assert_allclose(rates((0, 2, 4, 8, 12), 12, **fields), expected, 1e-6)


def test_half_a_cosine_at_a_quarter():
    (rate,) = rates([25], 100, warmup_steps=0, decay="cosine")
    np.testing.assert_allclose(rate, 1 + np.cos(np.pi / 4), rtol=1e-6)


def test_the_inverse_square_root_is_that_of_its_paper():
    # arXiv 1706.03762, equation 3: min(step^-0.5, step warmup^-1.5), times the peak.
    steps = np.arange(1, 400)
    expected = 2.0 * 4**0.5 * np.minimum(steps**-0.5, steps * 4**-1.5)
    found = rates(steps, 400, decay="rsqrt", rsqrt_steps=4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Another time scale: at the peak, and where the root is 2.
    np.testing.assert_allclose(
        rates([4, 34], 400, decay="rsqrt", rsqrt_steps=10), [2.0, 1.0], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("shape", "middle"),
    [("linear", 0.75), ("cosine", 0.5 + 0.5 * math.sqrt(0.5)), ("1-sqrt", 0.5)],
)
def test_only_the_last_steps_cool_down(shape, middle):
    """At a quarter of the cooldown, the factor is `middle`; at its end it is 0."""
    fields = {"cooldown_steps": 8, "cooldown": shape}
    found = rates((4, 92, 94, 100), 100, decay="constant", **fields)
    np.testing.assert_allclose(found, [2.0, 2.0, 2.0 * middle, 0.0], atol=1e-6)
    # It multiplies the decay; the steps before it do not know of it.
    fields |= {"decay": "rsqrt", "rsqrt_steps": 4}
    steps = (*range(93), 94)
    plain = rates(steps, 100, decay="rsqrt", rsqrt_steps=4)
    expected = [*plain[:-1], middle * plain[-1]]
    np.testing.assert_allclose(rates(steps, 100, **fields), expected, rtol=1e-6)


def test_every_cooldown_falls_from_one_to_zero():
    for factor in COOLDOWNS.values():
        fall = [float(factor(passed)) for passed in np.linspace(0, 1, 9)]
        assert (fall[0], fall[-1]) == pytest.approx((1.0, 0.0), abs=1e-6)
        assert fall == sorted(fall, reverse=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay": "step"}, "optimizer.decay is 'step'; known: linear, cosine"),
        ({"decay": "staircase"}, "staircase_steps is 0"),
        ({"cooldown": "sqrt"}, "optimizer.cooldown is 'sqrt'; did you mean '1-sqrt'"),
        ({"cooldown_steps": 3}, "'linear' ends at 0 .* wanted one of staircase, const"),
        ({"decay": "cosine", "cooldown_steps": 3}, "the decay 'cosine' ends at 0"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        read_config(OptimizerConfig, fields)


def test_a_cooldown_begins_after_the_warm_up(tmp_path):
    schedule = {"decay": "constant", "warmup_steps": 1}
    fields = tiny.make_run(tmp_path, optimizer=schedule | {"cooldown_steps": 3})
    assert read_run_config(fields).optimizer.cooldown_steps == 3
    fields["optimizer"]["cooldown_steps"] = 4
    with pytest.raises(InputError, match="is 4; at most 3 of the 4 steps are left"):
        read_run_config(fields)
