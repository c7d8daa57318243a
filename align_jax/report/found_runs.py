"""Runs that folders hold, finished or not, and what is known of each."""

import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from align_jax import places
from align_jax.config import leave_out
from align_jax.errors import InputError
from align_jax.models.parameters import variable_shapes
from align_jax.report.run_kinds import KINDS, kind_of
from align_jax.runs import workdir as folder
from align_jax.runs.pace import DEVICE_HOURS, PRODUCTIVE
from align_jax.runs.provenance import PROVENANCE_FILE
from align_jax.runs.results import REPORT_FILE
from align_jax.runs.telemetry import stream_metrics
from align_jax.training.training_runs import TRAINING, read_run_config

HASH = re.compile("-[0-9a-f]{8}$")  # that `sweep_config` gives to a run's folder


@dataclasses.dataclass(frozen=True)
class FoundRun:
    """A run's folder.

    Attributes:
      place: the folder.
      name: short and, among those found together, of this run alone.
      fields: its literal config.
      results: final ones, or those so far.
      rows: lines of metrics with scores or the measures of a flush, in order.
      latest: the last value of every metric.
      provenance: what it ran with; empty where that was not written.
      finished: whether it ended.
    """

    place: str
    name: str
    fields: Mapping[str, Any]
    results: Mapping[str, float]
    rows: Sequence[Mapping[str, float]]
    latest: Mapping[str, float]
    provenance: Mapping[str, str]
    finished: bool

    @property
    def title(self) -> str:
        """The name without a sweep's hash, as tables of runs have it."""
        return HASH.sub("", os.path.basename(self.place))

    @property
    def trains(self) -> bool:
        """Whether it is a training run."""
        return self.fields.get("run") in TRAINING

    @property
    def report(self) -> str | None:
        """Path of the run's own page, if there is one."""
        path = os.path.join(self.place, REPORT_FILE)
        return path if places.exists(path) else None

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Parameters by part of the model; {} where the config does not tell."""
        if not self.trains:
            return {}
        try:
            model = read_run_config(self.fields).model
        except InputError:  # a run of another version of this code
            return {}
        counts: Counter = Counter()
        for path, shape in variable_shapes(model).items():
            if path[0] == "params":
                counts[path[1]] += math.prod(shape)
        return dict(counts)

    @property
    def measures(self) -> dict[str, float]:
        """What the run took, by `MEASURES`; without what its metrics do not tell."""
        found: dict[str, float | None] = {"parameters": sum(self.parameters.values())}
        latest = self.latest
        if self.trains:
            batch = self.fields["virtual_cores"] * self.fields["pairs_per_core"]
            pairs_seen = latest.get("step", 0) * batch
            found["pairs_seen"] = pairs_seen
            speed = latest.get("train/pairs_per_second_per_device")
            flops = latest.get("train/tflops_per_second_per_device")
            if speed and flops:  # operations a pair, by the pairs
                found["flops"] = flops / speed * pairs_seen * 1e12
        for name in ("pairs_per_second", "model_flops_utilisation", "goodput"):
            found[name] = latest.get(f"train/{name}")
        found["training_hours"] = latest.get(PRODUCTIVE, 0) / 3600
        found["device_hours"] = latest.get(DEVICE_HOURS)
        return {name: value for name, value in found.items() if value}


MEASURES = {
    "parameters": "parameters of the model",
    "pairs_seen": "pairs it was trained on, each as often as it was seen",
    "flops": "operations of the model, forward and backward",
    "pairs_per_second": "pairs per second, all devices, at the last measure",
    "model_flops_utilisation": "share of the devices' peak, where that is known",
    "goodput": "share of the time, interruptions included, in steps that were kept",
    "training_hours": "hours in steps that were kept",
    "device_hours": "hours of all devices, compiling and evaluating included",
}


def find_runs(typed: Sequence[str]) -> list[FoundRun]:
    """Finds the runs of some folders, each a run's or one that holds runs.

    Scores of an evaluation whose checkpoint is one of the runs become the run's, unless
    it has some of these names itself.

    Raises:
      InputError: a folder holds none.
    """
    found: dict[str, None] = {}
    for place in typed:
        folders = [*_run_folders(_whole_path(place))]
        if not folders:
            raise InputError(
                f"{place} holds no run: no {folder.CONFIG_FILE} in it or below; name"
                " workdirs, or a sweep's"
            )
        found |= dict.fromkeys(folders)
    names = _short_names([*found])
    return _join_evaluations([_read(run, names[run]) for run in found])


def _whole_path(place: str) -> str:
    """One path a folder, whatever it was called."""
    return places.resolve(place).rstrip("/") or "/"


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """The last parts of each path, as many as tell them all apart."""
    longest = max(path.count("/") for path in paths) + 1
    for count in range(1, longest + 1):
        names = {path: "/".join(path.split("/")[-count:]) for path in paths}
        if len({*names.values()}) == len(names):
            break
    return names


def _run_folders(place: str) -> Iterator[str]:
    """A run's folder itself, else those below, in order; a search's are its own."""
    if folder.is_claimed(place):
        config = places.read_json(os.path.join(place, folder.CONFIG_FILE))
        if config.get("run") in KINDS:  # a corpus has a config, too
            yield place
    elif places.is_folder(place):
        for name in places.list_names(place):
            yield from _run_folders(os.path.join(place, name))


def _read(place: str, name: str) -> FoundRun:
    def read(file: str, default: Any) -> Any:
        path = os.path.join(place, file)
        return places.read_json(path) if places.exists(path) else default

    # Of a million lines of steps only those of flushes and of evaluations are kept.
    rows: list[dict[str, float]] = []
    latest: dict[str, float] = {}
    so_far: dict[str, float] = {}
    for row in stream_metrics(place):
        latest |= row
        scores = {k: v for k, v in row.items() if k.startswith("eval/")}
        so_far |= {"step": row["step"], **scores}
        if scores or PRODUCTIVE in row:
            rows.append(row)
    return FoundRun(
        place=place,
        name=name,
        fields=read(folder.CONFIG_FILE, {}),
        results=read(folder.RESULTS_FILE, so_far),
        rows=rows,
        latest=latest,
        provenance=read(PROVENANCE_FILE, {}),
        finished=folder.is_finished(place),
    )


def _join_evaluations(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Adds scores of evaluations to the runs that they are of, which lack them."""
    known = {run.place: run for run in runs if run.trains}
    rest = []
    for run in runs:
        if run.trains:
            continue
        of = known.get(_whole_path(str(run.fields.get("checkpoint", ""))))
        if of and run.fields["run"] == "evaluate" and _adds(run, of):
            joined = dataclasses.replace(of, results={**run.results, **of.results})
            known[of.place] = joined
        else:
            rest.append(run)
    return [*known.values(), *rest]


def _adds(evaluation: FoundRun, run: FoundRun) -> bool:
    """Whether an evaluation has new scores, of the step that a run ended with."""
    scores = {name for name in evaluation.results if name.startswith("eval/")}
    same = evaluation.results.get("step") == run.results.get("step")
    return bool(scores) and same and not scores & {*run.results}


def changed_fields(runs: Sequence[FoundRun]) -> list[dict[str, Any]]:
    """For each run, {dotted path: value} of what sets it apart.

    That is where its value is not the one that most runs of its kind have.
    """
    flat = []
    for run in runs:
        execution = kind_of(run.fields).execution(run.fields)
        flat.append(_flatten(leave_out(run.fields, [*execution, "evaluators"])))
    changed: list[dict[str, Any]] = [{} for _ in runs]
    for kind in {run.fields.get("run") for run in runs}:
        alike = [i for i, run in enumerate(runs) if run.fields.get("run") == kind]
        for path in sorted({path for i in alike for path in flat[i]}):
            values = [repr(flat[i].get(path, "absent")) for i in alike]
            usual = Counter(values).most_common(1)[0][0]  # of equals the first
            for i, value in zip(alike, values, strict=True):
                if value != usual:
                    changed[i][path] = flat[i].get(path, "absent")
    return changed


def _flatten(fields: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Leaves of a config by dotted path."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = value
    return flat
