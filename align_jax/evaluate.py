"""Evaluation: of a state inside training, or of a finished run by itself."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from align_jax import workdir as folder
from align_jax.config import choose, read_config
from align_jax.convert.source import open_weights
from align_jax.embedding import Embedder
from align_jax.errors import InputError
from align_jax.evaluators import EVALUATORS
from align_jax.model import make_embedder
from align_jax.provenance import write_provenance
from align_jax.results import print_results
from align_jax.run_report import write_report
from align_jax.saved_embeddings import SavedEmbedder
from align_jax.weights import digest


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation of a checkpoint.

    Attributes:
      run: "evaluate".
      checkpoint: what holds a dual encoder or a classifier, see `open_weights`: the
        workdir of a training run, a Hugging Face folder, ...
      evaluators: name -> {"kind": a key of EVALUATORS, and that evaluator's fields}.
      embeddings: folder that keeps what is embedded, for evaluators that embed the same
        and for the next evaluation of this model; "" keeps nothing.
    """

    run: str
    checkpoint: str
    evaluators: dict
    embeddings: str = ""

    def __post_init__(self):
        if not self.checkpoint:
            raise ValueError(
                "checkpoint is empty; name what holds a model, as in"
                " --config.checkpoint=runs/quickstart"
            )


def make_evaluators(described: dict[str, dict]) -> dict[str, Any]:
    """Builds evaluators from {name: {"kind": ..., fields}} and reads their data.

    Raises:
      InputError: an unknown kind or field, or missing data.
    """
    evaluators = {}
    for name, fields in described.items():
        where = f"config.evaluators.{name}"
        if "kind" not in fields:
            raise InputError(f"{where} lacks the field 'kind', one of {[*EVALUATORS]}")
        kind = choose(EVALUATORS, fields["kind"], f"{where}.kind")
        rest = {key: value for key, value in fields.items() if key != "kind"}
        evaluators[name] = kind(read_config(kind.Config, rest, where))
    return evaluators


def run_evaluators(
    evaluators: dict[str, Any], embedder: Embedder
) -> Iterator[tuple[str, float]]:
    """Yields ("eval/<evaluator>/<score>", value) of all evaluators."""
    for name, evaluator in evaluators.items():
        for score, value in evaluator.run(embedder):
            yield f"eval/{name}/{score}", value


def evaluate(fields: dict[str, Any], workdir: str) -> None:
    """Evaluates the newest checkpoint of a run into a workdir of its own.

    Args:
      fields: the literal config, see `EvaluateConfig`.
      workdir: folder of this evaluation alone.

    Raises:
      InputError: bad input, found before anything compiles.
    """
    config = read_config(EvaluateConfig, fields)
    folder.check(workdir, fields)
    if folder.is_finished(workdir):
        print(f"{workdir} holds this evaluation, finished: nothing to do.")
        print_results(workdir)
        return
    weights = open_weights(config.checkpoint)
    embedder = make_embedder(weights)
    evaluators = make_evaluators(config.evaluators)
    if folder.leads():
        folder.claim(workdir, fields)
        write_provenance(workdir)
    results = {"step": weights.step} if weights.step is not None else {}
    if config.embeddings:
        embedder = SavedEmbedder(embedder, config.embeddings, digest(weights))
    results |= dict(run_evaluators(evaluators, embedder))
    write_report(workdir, fields, results, evaluators, embedder)
    if folder.leads():
        folder.write_json(os.path.join(workdir, folder.RESULTS_FILE), results)
        print_results(workdir)
