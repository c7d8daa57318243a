"""The kinds of run that `main.py` starts, by the config's field `run`."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from align_jax.config import choose, read_config
from align_jax.evaluation.runner import EvaluateConfig
from align_jax.training.random_search_config import SearchConfig, search_execution
from align_jax.training.run_config import run_execution
from align_jax.training.training_runs import TRAINING, read_run_config


@dataclasses.dataclass(frozen=True)
class RunKind:
    """A kind of run.

    Attributes:
      check: function of a literal config and its name in messages, such as "config",
        which raises InputError for an invalid config.
      execution: function of a literal config that returns the dotted paths of the
        fields that do not change the run's result.
    """

    check: Callable[[Mapping[str, Any], str], Any]
    execution: Callable[[Mapping[str, Any]], list[str]]


RUN_KINDS = {
    **{name: RunKind(read_run_config, run_execution) for name in TRAINING},
    "evaluate": RunKind(partial(read_config, EvaluateConfig), lambda fields: []),
    "random_search": RunKind(
        lambda f, where: read_config(SearchConfig, f, where).check(), search_execution
    ),
}


def kind_of(fields: Mapping[str, Any], where: str = "config") -> RunKind:
    """Returns the value of `RUN_KINDS` that the config's field `run` names.

    Args:
      fields: literal config.
      where: name of the config in messages.

    Raises:
      InputError: the field is absent or names no kind.
    """
    return choose(RUN_KINDS, fields.get("run", "absent"), f"{where}.run")
