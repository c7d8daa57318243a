"""The types of training run, chosen by a config's field `run`."""

from collections.abc import Mapping
from typing import Any

from align_jax.config import choose, read_config
from align_jax.training.classify_config import ClassifyConfig
from align_jax.training.pretrain_config import PretrainConfig
from align_jax.training.run_config import RunConfig

TRAINING: dict[str, type[RunConfig]] = {
    "pretrain": PretrainConfig,
    "classify": ClassifyConfig,
}


def read_run_config(fields: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Builds the config of a training run.

    Args:
      fields: literal config; its field `run` is a key of `TRAINING`.
      where: dotted path of `fields`, for messages.

    Raises:
      InputError: a field is wrong or missing, or `run` is not in `TRAINING`.
    """
    kind = choose(TRAINING, fields.get("run", "absent"), f"{where}.run")
    return read_config(kind, fields, where)
