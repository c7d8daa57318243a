"""LAMB (arXiv 1904.00962) with the paper's schedule (arXiv 2102.05918, section 5)."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """LAMB and its learning-rate schedule.

    Attributes:
      learning_rate: peak, reached after the warm-up.
      warmup_steps: linear rise from 0.
      weight_decay: decoupled decay ratio (paper: 1e-5).
      b1: decay of the first moment.
      b2: decay of the second moment.
      epsilon: added to the second moment's root.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 10_000
    weight_decay: float = 1e-5
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-6


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Linear rise over `warmup_steps`, then linear fall to 0 at `total_steps`."""
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps),
            optax.linear_schedule(
                config.learning_rate, 0.0, total_steps - config.warmup_steps
            ),
        ],
        [config.warmup_steps],
    )


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Builds LAMB; BatchNorm's parameters get neither decay nor trust ratio.

    `optax.lamb(mask=)` would mask the decay alone, so the chain is built here.
    """
    return optax.chain(
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, adapted_parameters),
        optax.masked(optax.scale_by_trust_ratio(), adapted_parameters),
        optax.scale_by_learning_rate(schedule),
    )


def adapted_parameters(params: dict) -> dict:
    """Marks (True) the parameters outside BatchNorm: those LAMB decays and adapts."""

    def outside_batch_norm(path: tuple, _) -> bool:
        names = [key.key for key in path]
        return names[0] != "image_tower" or not names[-2].endswith("_norm")

    return jax.tree_util.tree_map_with_path(outside_batch_norm, params)
