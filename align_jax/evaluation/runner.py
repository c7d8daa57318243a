"""Builds the evaluators of a config and runs them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from align_jax.config import choose, read_config, read_value
from align_jax.contracts import check_contract, check_instance
from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError
from align_jax.evaluation.evaluators import (
    EVALUATORS,
    WITHOUT_EMBEDDINGS,
    Evaluator,
)
from align_jax.evaluation.narrowed import narrowed
from align_jax.ranges import Count

WIDTH = "width"  # field of every evaluator


@dataclasses.dataclass(frozen=True)
class DatacompConfig:
    """DataComp's 38 sets, or those of them that there are.

    Attributes:
      directory: path or URL of the folder that holds the sets' folders, such as
        wds_cifar10_test; "" to evaluate none of them.
      check_sizes: whether each set must have its published number of samples.
      model: column `name` of the model's row in open_clip's table; "" for the
        checkpoint's name.
      pretrained: column `pretrained` of that row.
    """

    directory: str = ""
    check_sizes: bool = True
    model: str = ""
    pretrained: str = ""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation of a checkpoint.

    Attributes:
      run: the string "evaluate".
      checkpoint: source of a dual encoder or a classifier, see `open_weights`, such as
        the workdir of a training run or a Hugging Face folder.
      evaluators: name -> {"kind": a key of EVALUATORS, and that evaluator's fields}.
        A field "width" is the number of the embeddings' first components to score.
      embeddings: folder in which embeddings are saved, for evaluators that embed the
        same pictures or texts and for later evaluations of this model; "" saves none,
        or with `datacomp` in the workdir.
      datacomp: DataComp's sets, evaluated after `evaluators`.
    """

    run: str
    checkpoint: str
    evaluators: dict[str, dict]
    embeddings: str = ""
    datacomp: DatacompConfig = DatacompConfig()

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise ValueError(
                "checkpoint is empty; name what holds a model, as in"
                " --config.checkpoint=runs/quickstart"
            )


def make_evaluators(described: Mapping[str, dict]) -> dict[str, Evaluator]:
    """Builds evaluators, by name, and opens their datasets.

    Args:
      described: {name: {"kind": a key of EVALUATORS, and that evaluator's fields}},
        and a "width" if only the embeddings' first components are scored.

    Raises:
      InputError: "kind" is missing or unknown, a field is unknown, missing or invalid,
        or a dataset is missing or is not the expected one.
      TypeError: the class of a kind does not fulfil `Evaluator`, or its `Config` is no
        dataclass.
    """
    evaluators: dict[str, Evaluator] = {}
    for name, fields in described.items():
        kind, config = _read_evaluator(name, fields)
        evaluator = kind(config)
        width = _read_width(name, fields)
        evaluators[name] = narrowed(evaluator, width) if width else evaluator
    return evaluators


def fill_evaluators(described: Mapping[str, dict]) -> dict[str, dict[str, Any]]:
    """Adds the defaults to evaluators' fields; opens no dataset.

    Args:
      described: the argument of `make_evaluators`.

    Raises:
      InputError: a field or a kind is wrong.
      TypeError: the class of a kind does not fulfil `Evaluator`.
    """
    filled = {}
    for name, fields in described.items():
        _, config = _read_evaluator(name, fields)
        filled[name] = {"kind": fields["kind"]} | dataclasses.asdict(config)
        if width := _read_width(name, fields):
            filled[name][WIDTH] = width
    return filled


def check_widths(described: Mapping[str, dict], width: int) -> None:
    """Checks that embeddings have the components that evaluators score.

    Args:
      described: the argument of `make_evaluators`.
      width: number of components of the embeddings.

    Raises:
      InputError: an evaluator has a larger width.
    """
    for name, fields in described.items():
        if (wanted := _read_width(name, fields) or 0) > width:
            raise InputError(
                f"config.evaluators.{name}.{WIDTH} is {wanted}, but embeddings have"
                f" {width} numbers"
            )


def _read_width(name: str, fields: Mapping[str, Any]) -> int | None:
    """Returns the width at which an evaluator scores embeddings; None for the whole.

    Args:
      name: name of the evaluator.
      fields: the evaluator's fields.

    Raises:
      InputError: the width is not 1 or more, or the evaluator scores no embeddings.
    """
    where = f"config.evaluators.{name}.{WIDTH}"
    width = read_value(Count | None, fields.get(WIDTH), where)
    if width and fields["kind"] in WITHOUT_EMBEDDINGS:
        raise InputError(
            f"{where} is {width}, but the kind {fields['kind']!r} scores no embeddings;"
            " leave it out"
        )
    return width


def _read_evaluator(
    name: str, fields: Mapping[str, Any]
) -> tuple[type[Evaluator], Any]:
    """Returns the class and the config of an evaluator; see `make_evaluators`."""
    where = f"config.evaluators.{name}"
    if "kind" not in fields:
        raise InputError(f"{where} lacks the field 'kind', one of {[*EVALUATORS]}")
    kind = choose(EVALUATORS, fields["kind"], f"{where}.kind")
    check_contract(kind, Evaluator, entry := f"EVALUATORS[{fields['kind']!r}]")
    if not dataclasses.is_dataclass(kind.Config):
        raise TypeError(
            f"class {kind.__name__} of {entry} has Config = {kind.Config!r}; wanted a"
            " dataclass of its fields"
        )
    rest = {k: value for k, value in fields.items() if k not in ("kind", WIDTH)}
    return kind, read_config(kind.Config, rest, where)


def run_evaluators(
    evaluators: Mapping[str, Evaluator], embedder: Encoder
) -> Iterator[tuple[str, float]]:
    """Yields ("eval/<evaluator's name>/<score>", value) of all evaluators, in order.

    Raises:
      InputError: an evaluator needs a part that the model lacks, such as a text tower,
        or cannot read its data.
      FloatingPointError: an embedding is not finite.
      TypeError: the encoder does not fulfil `Encoder`.
    """
    check_instance(embedder, Encoder, "the evaluation's encoder")
    for name, evaluator in evaluators.items():
        try:
            for score, value in evaluator.run(embedder):
                yield f"eval/{name}/{score}", float(value)  # of NumPy or JAX, too
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        except FloatingPointError as error:
            raise FloatingPointError(f"{name}: {error}") from error
