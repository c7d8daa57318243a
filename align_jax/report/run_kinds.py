"""The kinds of run that `main.py` starts, by the config's field `run`."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from align_jax import places
from align_jax.config import check_folder, choose, read_config
from align_jax.evaluation.runner import EvaluateConfig, fill_evaluators
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
      fill: function that adds the defaults to a literal config.
    """

    check: Callable[[Mapping[str, Any], str], Any]
    execution: Callable[[Mapping[str, Any]], list[str]]
    fill: Callable[[Mapping[str, Any]], dict[str, Any]]


def _fill_training(fields: Mapping[str, Any]) -> dict[str, Any]:
    config = read_run_config(fields)
    filled = dataclasses.asdict(config)
    return filled | {"evaluators": fill_evaluators(config.evaluators)}


def _fill_evaluation(fields: Mapping[str, Any]) -> dict[str, Any]:
    config = read_config(EvaluateConfig, fields)
    filled = dataclasses.asdict(config)
    return filled | {"evaluators": fill_evaluators(config.evaluators)}


def _fill_search(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the search's own defaults; `base` stays, as it is no complete config.

    The folder of each trial holds the trial's config with all defaults.
    """
    return dataclasses.asdict(read_config(SearchConfig, fields))


RUN_KINDS = {
    **{
        name: RunKind(read_run_config, run_execution, _fill_training)
        for name in TRAINING
    },
    "evaluate": RunKind(
        partial(read_config, EvaluateConfig), lambda fields: [], _fill_evaluation
    ),
    "random_search": RunKind(
        lambda f, where: read_config(SearchConfig, f, where).check(),
        search_execution,
        _fill_search,
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


def fill_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the defaults to the literal config of a run of any kind.

    Raises:
      InputError: a field is missing, unknown or wrong.
    """
    return kind_of(fields).fill(fields)


def check_workdir(workdir: places.Place, fields: Mapping[str, Any]) -> None:
    """Checks that a folder is unused or belongs to a run, see `check_folder`.

    Fields that do not change the run's result may differ.

    Args:
      workdir: path or URL of the folder.
      fields: the run's literal config.
    """
    check_folder(workdir, fields, kind_of(fields).execution(fields), fill_defaults)
