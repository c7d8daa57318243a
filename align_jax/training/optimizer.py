"""Optimizers, chosen and masked by config; `schedules` has their learning rates.

Pretraining uses LAMB (arXiv 1904.00962) with linear warm-up and decay (ALIGN, arXiv
2102.05918, section 5). Transfer uses SGD with momentum and cosine or staircase decay.

A parameter's name is its path, such as "image_tower/stem_norm/scale". A pattern is a
regular expression; it fits a parameter if `re.search` finds it anywhere in the name.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import jax
import optax
import optax.contrib

from align_jax.config import check_choices
from align_jax.ranges import NonNegative, Positive, ProperShare, Range
from align_jax.training.muon import is_matrix, orthogonal_steps
from align_jax.training.schedules import ScheduleConfig

# The average is computed with a rounding error of 1 / b1 times that of a parameter.
LEAST_B1 = 0.01

Mask = Callable[[Any], Any]  # function from a tree of parameters to a tree of bools
Chain = tuple[optax.GradientTransformation, ...]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(ScheduleConfig):
    """An optimizer, its schedule, and the parameters that it applies to.

    Attributes:
      kind: optimizer, a key of `OPTIMIZERS`.
      weight_decay: decoupled decay ratio (ALIGN: 1e-5); for "sgd", the factor of an L2
        penalty's gradient.
      b1: decay of the first moment; for "sgd", the momentum.
      b2: decay of the second moment; only for "lamb" and "adamw".
      epsilon: constant above 0, added to the square root of the second moment; only for
        "lamb" and "adamw". Without it, a parameter whose gradients are all 0 would be
        divided by 0.
      undecayed: patterns of parameters without weight decay; None for the patterns
        that the towers name (BatchNorm's; a transformer's gains, biases and positions).
      unadapted: patterns of parameters without LAMB's trust ratio; None for the
        patterns that the towers name.
      frozen: patterns of parameters that keep their values.
      rate_factors: (pattern, factor) pairs; the first pattern that fits a parameter
        gives the factor of its learning rate.
      clip_norm: largest global norm of the gradients of parameters that are not frozen;
        larger gradients are scaled down to it. None for no clipping.
      average_decay: decay of an exponential moving average of parameters and running
        statistics; evaluations use the average. None for no average.
      muon_momentum: decay of the momentum that "muon" makes orthogonal.
      muon_matrices: patterns of kernels that "muon" moves by orthogonal steps; None for
        all kernels but depthwise ones. A kernel of more than two axes counts as the
        matrix from its inputs to its outputs.
      muon_others: optimizer of all other parameters under "muon", with the fields
        above: "adamw" or "lamb".
    """

    kind: str = "lamb"
    weight_decay: NonNegative = 1e-5
    b1: ProperShare = 0.9
    b2: ProperShare = 0.999
    epsilon: Positive = 1e-6
    undecayed: tuple[str, ...] | None = None
    unadapted: tuple[str, ...] | None = None
    frozen: tuple[str, ...] = ()
    rate_factors: tuple[tuple[str, NonNegative], ...] = ()
    clip_norm: Positive | None = None
    average_decay: Annotated[float, Range(above=0, below=1)] | None = None
    muon_momentum: ProperShare = 0.95
    muon_matrices: tuple[str, ...] | None = None
    muon_others: str = "adamw"

    def __post_init__(self) -> None:
        choices = {"kind": OPTIMIZERS, "muon_others": ("adamw", "lamb")}
        check_choices(self, choices, "optimizer.")
        super().__post_init__()
        if self.kind == "schedule_free_adamw":
            self._check_schedule_free()
        for name, patterns in self.patterns().items():
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(
                        f"optimizer.{name} has {pattern!r}, which is no regular"
                        f" expression: {error}"
                    ) from error

    def _check_schedule_free(self) -> None:
        """Checks the fields that a schedule-free optimizer replaces."""
        if self.decay != "constant" or self.cooldown_steps:
            raise ValueError(
                f"optimizer.kind is {self.kind!r}, decay {self.decay!r} and"
                f" cooldown_steps {self.cooldown_steps}; its average takes the place of"
                " a falling rate: wanted 'constant' and 0"
            )
        if self.average_decay is not None:
            raise ValueError(
                f"optimizer.kind is {self.kind!r} and average_decay"
                f" {self.average_decay}; it evaluates with its own average: wanted None"
            )
        if self.b1 < LEAST_B1:
            raise ValueError(
                f"optimizer.kind is {self.kind!r} and b1 {self.b1}; wanted"
                f" {LEAST_B1} or more, the weight of the average in the point of the"
                " gradient"
            )

    def patterns(self) -> dict[str, list[str]]:
        """Returns the patterns by field, for the fields that hold patterns.

        None counts as no patterns.
        """
        return {
            "muon_matrices": list(self.muon_matrices or ()),
            "undecayed": list(self.undecayed or ()),
            "unadapted": list(self.unadapted or ()),
            "frozen": list(self.frozen),
            "rate_factors": [pattern for pattern, _ in self.rate_factors],
        }


def _lamb(config: OptimizerConfig, decayed: Mask, adapted: Mask) -> Chain:
    # optax.lamb(mask=) would mask the decay but not the trust ratio.
    return (
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.masked(optax.scale_by_trust_ratio(), adapted),
    )


def _sgd(config: OptimizerConfig, decayed: Mask, adapted: Mask) -> Chain:
    return (
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.trace(config.b1),
    )


def _adamw(config: OptimizerConfig, decayed: Mask, adapted: Mask) -> Chain:
    return (
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, decayed),
    )


def _adafactor(config: OptimizerConfig, decayed: Mask, adapted: Mask) -> Chain:
    # No scaling by a parameter's size, as for vision transformers (arXiv 2106.04560,
    # section 3.5): learning rates then have the same meaning as for Adam.
    return (
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.ema(config.b1, debias=False, accumulator_dtype="bfloat16"),
        optax.add_decayed_weights(config.weight_decay, decayed),
    )


def _muon(config: OptimizerConfig, decayed: Mask, adapted: Mask) -> Chain:
    matrices = optax.chain(
        orthogonal_steps(config.muon_momentum),
        optax.add_decayed_weights(config.weight_decay, decayed),
    )
    others = optax.chain(*OPTIMIZERS[config.muon_others](config, decayed, adapted))
    return (optax.partition({True: matrices, False: others}, _matrices(config)),)


def _schedule_free_adamw(
    config: OptimizerConfig, decayed: Mask, adapted: Mask
) -> Chain:
    # AdamW without its first moment; `make_optimizer` adds the average in its place.
    return (
        optax.scale_by_rms(
            config.b2, config.epsilon, eps_in_sqrt=False, bias_correction=True
        ),
        optax.add_decayed_weights(config.weight_decay, decayed),
    )


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, Mask, Mask], Chain]] = {
    "lamb": _lamb,
    "sgd": _sgd,
    "adamw": _adamw,
    "adafactor": _adafactor,
    "muon": _muon,
    "schedule_free_adamw": _schedule_free_adamw,
}


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, exempt: tuple[str, ...]
) -> optax.GradientTransformation:
    """Builds the optimizer; frozen parameters have no state in it and zero updates.

    Args:
      config: config of the optimizer.
      schedule: learning rate by step, see `schedules`.
      exempt: patterns to use for `undecayed` and `unadapted` if these are None.
    """
    undecayed = exempt if config.undecayed is None else config.undecayed
    unadapted = exempt if config.unadapted is None else config.unadapted
    clip = [] if config.clip_norm is None else [config.clip_norm]
    moving = optax.chain(
        *map(optax.clip_by_global_norm, clip),
        *OPTIMIZERS[config.kind](config, _outside(undecayed), _outside(unadapted)),
        *(
            optax.masked(optax.scale(factor), _first_fitting(config, index))
            for index, (_, factor) in enumerate(config.rate_factors)
        ),
        optax.scale_by_learning_rate(schedule),
    )
    if config.kind == "schedule_free_adamw":
        moving = optax.contrib.schedule_free(moving, schedule, config.b1)
    if not config.frozen:
        return moving
    kinds = {True: moving, False: optax.set_to_zero()}
    return optax.partition(kinds, _outside(config.frozen))


def trainable(config: OptimizerConfig, params: Mapping) -> dict:
    """Returns a tree of bools like `params`, True where a parameter is not frozen."""
    return _outside(config.frozen)(params)


def check_patterns(config: OptimizerConfig, names: Iterable[str]) -> None:
    """Checks that every pattern of the config fits a parameter.

    Args:
      config: config of the optimizer.
      names: paths of all parameters, joined by "/".

    Raises:
      ValueError: a pattern fits no parameter; the message names the pattern.
    """
    names = list(names)
    for field, patterns in config.patterns().items():
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in names):
                raise ValueError(
                    f"optimizer.{field} has the pattern {pattern!r}, which fits no"
                    f" parameter; they are named like {names[0]}"
                )


def _matrices(config: OptimizerConfig) -> Mask:
    """Returns a mask that is True for the kernels that "muon" moves."""
    patterns = ("",) if config.muon_matrices is None else config.muon_matrices
    return _mask(lambda name, x: is_matrix(name, x) and _fits(name, patterns))


def _outside(patterns: Iterable[str]) -> Mask:
    """Returns a mask that is True where no pattern fits."""
    patterns = tuple(patterns)
    return _mask(lambda name, _: not _fits(name, patterns))


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _first_fitting(config: OptimizerConfig, index: int) -> Mask:
    """Returns a mask, True where rate factor `index` is the first that fits."""
    patterns = [pattern for pattern, _ in config.rate_factors]

    def first(name: str, _: Any) -> bool:
        fitting = (i for i, p in enumerate(patterns) if re.search(p, name))
        return next(fitting, None) == index

    return _mask(first)


def _mask(chosen: Callable[[str, Any], bool]) -> Mask:
    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: chosen("/".join(key.key for key in path), x), params
        )

    return mask
