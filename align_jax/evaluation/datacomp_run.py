"""Evaluates a model on a folder of DataComp's sets, set by set."""

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from align_jax import places
from align_jax.devices.exchange import gather
from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError
from align_jax.evaluation.datacomp import (
    SETS,
    find_sets,
    has_set,
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

FOLDER = "datacomp"  # of the finished sets' scores, in the workdir
ROW_FILE = "openclip_results.csv"


def has_new_sets(config: DatacompConfig, results: Mapping[str, float]) -> bool:
    """Returns whether the folder has sets that are not among some results."""
    if not config.directory or not places.is_folder(places.resolve(config.directory)):
        return False
    done = {name.split("/")[1] for name in results if name.startswith("eval/")}
    return has_set(config.directory, done)


class Datacomp:
    """The sets of a folder, of which some may be finished.

    The scores of each finished set are in `<workdir>/datacomp/<evaluator>.json`.
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
        self._scores = {
            each.evaluator: self._read(each.evaluator) for each in self._sets
        }
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
                    self._write(each.evaluator, scores)
            results |= scores
        return results | summarise(results)

    def write(self, results: dict[str, float], checkpoint: str) -> None:
        """Writes the model's row of open_clip's table into the workdir."""
        model = self._config.model or checkpoint
        row = write_row(results, model, self._config.pretrained)
        if folder.leads():
            places.write_text(os.path.join(self._workdir, ROW_FILE), row)

    def _path(self, evaluator: str) -> str:
        return os.path.join(self._workdir, FOLDER, f"{evaluator}.json")

    def _read(self, evaluator: str) -> dict[str, float] | None:
        """Returns the results of a finished set; None if there are none."""
        if not places.exists(self._path(evaluator)):
            return None
        found: dict[str, Any] = places.read_object(
            self._path(evaluator), {"model": str, "results": dict}
        )
        return found["results"] if found["model"] == self._model else None

    def _write(self, evaluator: str, results: dict[str, float]) -> None:
        if folder.leads():
            places.make_folder(os.path.dirname(self._path(evaluator)))
            found = {"model": self._model, "results": results}
            places.write_json(self._path(evaluator), found)
