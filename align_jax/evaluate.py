"""Evaluates a trained model outside a training run."""

import os
from typing import Any

from align_jax.config import read_config, write_config
from align_jax.embed.encoder import Encoder
from align_jax.embed.model import make_embedder
from align_jax.embed.saved import SavedEmbedder
from align_jax.evaluation.datacomp_run import Datacomp, has_new_sets
from align_jax.evaluation.runner import (
    EvaluateConfig,
    check_widths,
    make_evaluators,
    run_evaluators,
)
from align_jax.report.run_kinds import check_workdir, fill_defaults
from align_jax.report.run_page import publish, show_finished
from align_jax.runs import workdir as folder
from align_jax.runs.provenance import add_provenance
from align_jax.weights.folder import digest, is_dual_encoder
from align_jax.weights.source import open_weights


def evaluate(fields: dict[str, Any], workdir: str) -> None:
    """Evaluates a trained model and writes its scores and report to a workdir.

    If the workdir holds the finished evaluation already, its results are only printed,
    and a report that is missing is drawn. But if there are new sets of DataComp, or
    changed ones, the evaluation runs again, without the sets that are finished.

    Args:
      fields: the literal config; see `EvaluateConfig`.
      workdir: path or URL of the evaluation's folder, which nothing else may use.

    Raises:
      InputError: bad fields, a missing model or data, or a workdir of another config,
        before anything compiles; later, a picture that cannot be read, an output that
        the model does not have, or a failure to write.
    """
    config = read_config(EvaluateConfig, fields)
    check_workdir(workdir, fields)
    if _is_finished(config, workdir):
        print(f"{workdir} holds this evaluation, finished: nothing to do.")
        show_finished(workdir, fill_defaults(fields), config.checkpoint)
        return
    weights = open_weights(config.checkpoint)
    embedder: Encoder = make_embedder(weights)
    evaluators = make_evaluators(config.evaluators)
    if is_dual_encoder(weights):
        check_widths(config.evaluators, weights.config.width)
    fields = fill_defaults(fields)
    model = digest(weights) if config.embeddings or config.datacomp.directory else ""
    datacomp = None
    if config.datacomp.directory:
        datacomp = Datacomp(config.datacomp, workdir, model)
    if config.embeddings:
        embedder = SavedEmbedder(embedder, config.embeddings, model)
    with folder.locked_workdir(workdir) as lock:
        check_workdir(workdir, fields)  # it was not locked before
        if folder.leads():
            write_config(workdir, fields)
            add_provenance(workdir)
        results: dict[str, float] = {}
        if weights.step is not None:
            results["step"] = weights.step
        if datacomp and not config.embeddings:
            saved = os.path.join(workdir, "embeddings")  # the workdir exists by now
            embedder = SavedEmbedder(embedder, saved, model)
        results |= dict(run_evaluators(evaluators, embedder))
        if datacomp:
            results |= datacomp.run(embedder)
            lock.check()
            datacomp.write(results, config.checkpoint)
        lock.check()
        publish(workdir, fields, results, evaluators, embedder)


def _is_finished(config: EvaluateConfig, workdir: str) -> bool:
    """Returns whether a workdir has all results, also those of new sets of DataComp."""
    if not folder.is_finished(workdir):
        return False
    return not has_new_sets(config.datacomp, workdir)
