"""Evaluates a trained model outside a training run."""

import os
from typing import Any

from align_jax import places
from align_jax.config import check_folder, read_config, write_config
from align_jax.embed.encoder import Encoder
from align_jax.embed.model import make_embedder
from align_jax.embed.saved import SavedEmbedder
from align_jax.evaluation.runner import (
    EvaluateConfig,
    make_evaluators,
    run_evaluators,
)
from align_jax.report.run_page import write_report
from align_jax.runs import workdir as folder
from align_jax.runs.provenance import write_provenance
from align_jax.runs.results import print_results
from align_jax.weights.folder import digest
from align_jax.weights.source import open_weights


def evaluate(fields: dict[str, Any], workdir: str) -> None:
    """Evaluates a trained model and writes its scores and report to a workdir.

    If the workdir holds the finished evaluation already, its results are only printed.

    Args:
      fields: the literal config; see `EvaluateConfig`.
      workdir: path or URL of the evaluation's folder, which nothing else may use.

    Raises:
      InputError: bad fields, a missing model or data, or a workdir of another config,
        before anything compiles; later, a picture that cannot be read, an output that
        the model does not have, or a failure to write.
    """
    config = read_config(EvaluateConfig, fields)
    check_folder(workdir, fields)
    if folder.is_finished(workdir):
        print(f"{workdir} holds this evaluation, finished: nothing to do.")
        print_results(workdir)
        return
    weights = open_weights(config.checkpoint)
    embedder: Encoder = make_embedder(weights)
    evaluators = make_evaluators(config.evaluators)
    with folder.locked_workdir(workdir) as lock:
        check_folder(workdir, fields)  # it was not locked before
        if folder.leads():
            write_config(workdir, fields)
            write_provenance(workdir)
        results: dict[str, float] = {}
        if weights.step is not None:
            results["step"] = weights.step
        if config.embeddings:
            embedder = SavedEmbedder(embedder, config.embeddings, digest(weights))
        results |= dict(run_evaluators(evaluators, embedder))
        lock.check()
        write_report(workdir, fields, results, evaluators, embedder)
        if folder.leads():
            places.write_json(os.path.join(workdir, folder.RESULTS_FILE), results)
            print_results(workdir)
