"""Learning rates by step: warm-up, decay and cooldown, chosen by config."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from align_jax.config import check_choices
from align_jax.ranges import Count, Natural, NonNegative, Positive

ENDS_AT_ZERO = ("linear", "cosine")  # decays that need no cooldown


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate by step.

    Attributes:
      learning_rate: peak learning rate, reached at the end of the warm-up. Any finite
        rate from 0 on is legal: the useful size depends on the optimizer.
      warmup_steps: steps of the linear rise from 0.
      decay: schedule after the warm-up, a key of `DECAYS`.
      staircase_steps: steps of one stair, counted from the end of the warm-up; only for
        "staircase".
      staircase_factor: factor that multiplies the learning rate at the end of each
        stair; only for "staircase".
      rsqrt_steps: time scale of "rsqrt", in steps after the warm-up. With the value of
        `warmup_steps`, the rate at step s is the peak times sqrt(warmup_steps / s), as
        in arXiv 1706.03762, section 5.3.
      cooldown_steps: number of last steps over which the learning rate falls to 0; 0
        for no cooldown. Only for a decay that does not end at 0 without it.
      cooldown: shape of this fall, a key of `COOLDOWNS`.
    """

    learning_rate: NonNegative = 1e-3
    warmup_steps: Natural = 10_000
    decay: str = "linear"
    staircase_steps: Natural = 0
    staircase_factor: Positive = 0.2
    rsqrt_steps: Count = 10_000
    cooldown_steps: Natural = 0
    cooldown: str = "1-sqrt"

    def __post_init__(self) -> None:
        check_choices(self, {"decay": DECAYS, "cooldown": COOLDOWNS}, "optimizer.")
        if self.decay == "staircase" and self.staircase_steps < 1:
            raise ValueError(
                f"optimizer.staircase_steps is {self.staircase_steps}; the staircase"
                " wants the steps of a stair"
            )
        if self.cooldown_steps and self.decay in ENDS_AT_ZERO:
            others = [name for name in DECAYS if name not in ENDS_AT_ZERO]
            raise ValueError(
                f"optimizer.cooldown_steps is {self.cooldown_steps}, but the decay"
                f" {self.decay!r} ends at 0 without a cooldown; wanted one of"
                f" {', '.join(others)}"
            )

    def check_steps(self, total_steps: int) -> None:
        """Checks that the warm-up and the cooldown fit into a run.

        Raises:
          ValueError: the warm-up has all steps of the run or more, or too few steps are
            left for the cooldown.
        """
        if not 0 <= self.warmup_steps < total_steps:
            raise ValueError(
                f"optimizer.warmup_steps is {self.warmup_steps}; it must be from 0 to"
                f" below total_steps, {total_steps}"
            )
        if self.cooldown_steps > total_steps - self.warmup_steps:
            raise ValueError(
                f"optimizer.cooldown_steps is {self.cooldown_steps}; at most"
                f" {total_steps - self.warmup_steps} of the {total_steps} steps are"
                " left after the warm-up"
            )


def _linear(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """Returns a rate that falls linearly from the peak to 0 over `steps`."""
    return optax.linear_schedule(config.learning_rate, 0.0, steps)


def _cosine(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """Returns a rate that falls from the peak to 0 over `steps` along half a cosine."""
    return optax.cosine_decay_schedule(config.learning_rate, steps)


def _staircase(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """Returns the peak times `staircase_factor` for every `staircase_steps` passed."""
    return optax.exponential_decay(
        config.learning_rate,
        config.staircase_steps,
        config.staircase_factor,
        staircase=True,
    )


def _constant(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """Returns a rate that stays at the peak."""
    return optax.constant_schedule(config.learning_rate)


def _rsqrt(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """Returns the peak / sqrt(1 + t / `rsqrt_steps`), t steps after the warm-up."""
    return lambda step: config.learning_rate / jnp.sqrt(1.0 + step / config.rsqrt_steps)


DECAYS: dict[str, Callable[[ScheduleConfig, int], optax.Schedule]] = {
    "linear": _linear,
    "cosine": _cosine,
    "staircase": _staircase,
    "constant": _constant,
    "rsqrt": _rsqrt,
}

# Functions from the share of the cooldown that has passed, in [0, 1], to the factor of
# the learning rate, which falls from 1 to 0.
COOLDOWNS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda passed: 1.0 - passed,
    "cosine": lambda passed: 0.5 * (1.0 + jnp.cos(jnp.pi * passed)),
    "1-sqrt": lambda passed: 1.0 - jnp.sqrt(passed),  # arXiv 2405.18392, section 3
}


def make_schedule(config: ScheduleConfig, total_steps: int) -> optax.Schedule:
    """Returns a function from the step, which counts from 0, to the learning rate.

    The learning rate rises linearly from 0 over `warmup_steps`. The decay then lasts
    until `total_steps`. A cooldown multiplies the decay's last `cooldown_steps` by a
    factor that falls from 1 to 0.
    """
    rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    fall = DECAYS[config.decay](config, total_steps - config.warmup_steps)
    schedule = optax.join_schedules([rise, fall], [config.warmup_steps])
    if not config.cooldown_steps:
        return schedule
    factor, start = COOLDOWNS[config.cooldown], total_steps - config.cooldown_steps

    def cooled(step: jax.Array) -> jax.Array:
        passed = jnp.clip((step - start) / config.cooldown_steps, 0.0, 1.0)
        return schedule(step) * factor(passed)

    return cooled
