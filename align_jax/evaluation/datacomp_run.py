"""Evaluates a model on a folder of DataComp's sets, set by set."""

import hashlib
import os
import sys
from typing import Any

import numpy as np

from align_jax import places, shard_files
from align_jax.devices.exchange import gather
from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError
from align_jax.evaluation.datacomp import (
    SETS,
    DatacompSet,
    find_sets,
    match_sets,
    misnamed_sets,
    summarise,
    write_row,
)
from align_jax.evaluation.runner import (
    DatacompConfig,
    make_evaluators,
    run_evaluators,
)
from align_jax.progress import doing
from align_jax.runs import workdir as folder
from align_jax.tar_index import shard_state

FOLDER = "datacomp"  # of the finished sets' scores, in the workdir
ROW_FILE = "openclip_results.csv"
SPLIT = "test"
ENDINGS = (".tar", ".txt", ".csv", ".zip")  # of the files of a set


def has_new_sets(config: DatacompConfig, workdir: str) -> bool:
    """Returns whether the folder has a set that a workdir has no scores of.

    A set whose files have changed since is new, too.
    """
    if not config.directory or not places.is_folder(places.resolve(config.directory)):
        return False
    found, _ = match_sets(config.directory)
    return any(
        _read_scores(workdir, each).get("set") != read_state(found[each.name])
        for each in SETS
        if each.name in found
    )


def read_state(directory: str) -> str:
    """Returns a hash of a set's files: names, and sizes and times or a text's content.

    Args:
      directory: path or URL of the set's folder.
    """
    files = []
    for part in (directory, os.path.join(directory, SPLIT)):
        names = places.list_names(part) if places.is_folder(part) else []
        files += [os.path.join(part, n) for n in names if n.endswith(ENDINGS)]
    rows = shard_files.for_each(
        lambda path: (
            path.removeprefix(directory),
            places.read_bytes(path) if path.endswith(".txt") else shard_state(path),
        ),
        files,
    )
    return hashlib.blake2b(repr(rows).encode(), digest_size=16).hexdigest()


def _scores_path(workdir: str, each: DatacompSet) -> str:
    return os.path.join(workdir, FOLDER, f"{each.evaluator}.json")


def _read_scores(workdir: str, each: DatacompSet) -> dict[str, Any]:
    """Returns the stored scores of a set, and what they are of; {} without them."""
    path = _scores_path(workdir, each)
    if not places.exists(path):
        return {}
    return places.read_object(path, {"model": str, "results": dict})


class Datacomp:
    """The sets of a folder, of which some may be finished.

    The scores of each finished set are in `<workdir>/datacomp/<evaluator>.json`. They
    count only for the same model and the same files of the set.
    """

    def __init__(self, config: DatacompConfig, workdir: str, model: str) -> None:
        """Finds the sets, and opens those that are not finished.

        Args:
          config: the sets' folder.
          workdir: path or URL of the evaluation's folder.
          model: hash of the model's weights; the scores of another model are ignored.

        Raises:
          InputError: the folder has no sets, a set is not the published one, or the
            processes see different scores.
        """
        self._config, self._workdir, self._model = config, workdir, model
        paths = find_sets(config.directory)
        if (names := misnamed_sets(config.directory)) and folder.leads():
            print(
                f"warning: {config.directory} has {', '.join(names)}: left out, since"
                " none of DataComp's sets has this name; see docs/benchmarks.md",
                file=sys.stderr,
            )
        self._sets = [each for each in SETS if each.name in paths]
        self._states = {s.evaluator: read_state(paths[s.name]) for s in self._sets}
        self._scores = {each.evaluator: self._read(each) for each in self._sets}
        finished = np.array([scores is not None for scores in self._scores.values()])
        if (gather(finished) != finished).any():
            raise InputError(
                f"processes see different scores in {workdir}; it must be one folder"
            )
        self._evaluators = make_evaluators(
            {
                each.evaluator: each.describe(paths[each.name], config.check_sizes)
                for each in self._sets
                if self._scores[each.evaluator] is None
            }
        )

    def run(self, embedder: Encoder) -> dict[str, float]:
        """Evaluates the sets that are not finished; returns the results of all."""
        results: dict[str, float] = {}
        for number, each in enumerate(self._sets, 1):
            scores = self._scores[each.evaluator]
            if scores is None:
                what = f"{each.name}, set {number} of {len(self._sets)}"
                with doing(f"evaluating {what}", folder.leads()):
                    # Its pictures need not stay in memory.
                    one = {each.evaluator: self._evaluators.pop(each.evaluator)}
                    scores = dict(run_evaluators(one, embedder))
                    self._write(each, scores)
            results |= scores
        return results | summarise(results)

    def write(self, results: dict[str, float], checkpoint: str) -> None:
        """Writes the model's row of open_clip's table into the workdir."""
        model = self._config.model or checkpoint
        row = write_row(results, model, self._config.pretrained)
        if folder.leads():
            places.write_text(os.path.join(self._workdir, ROW_FILE), row)

    def _marks(self, each: DatacompSet) -> dict[str, str]:
        """Returns what scores are of: the model and the files of the set."""
        return {"model": self._model, "set": self._states[each.evaluator]}

    def _read(self, each: DatacompSet) -> dict[str, float] | None:
        """Returns the results of a finished set; None if there are none."""
        found = _read_scores(self._workdir, each)
        results = found.pop("results", None)
        return results if found == self._marks(each) else None

    def _write(self, each: DatacompSet, results: dict[str, float]) -> None:
        if folder.leads():
            path = _scores_path(self._workdir, each)
            places.make_folder(os.path.dirname(path))
            places.write_json(path, self._marks(each) | {"results": results})
