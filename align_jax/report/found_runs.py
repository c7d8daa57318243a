"""Finds the runs in folders, finished or not, and reads the files of each."""

import contextlib
import dataclasses
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from align_jax import places
from align_jax.config import CONFIG_FILE, as_json, is_claimed, leave_out
from align_jax.errors import InputError, one_line
from align_jax.input.phases import count_pairs
from align_jax.models.parameters import variable_shapes
from align_jax.report.run_kinds import RUN_KINDS, fill_defaults, kind_of
from align_jax.runs import workdir as folder
from align_jax.runs.metric_lines import stream_metrics
from align_jax.runs.pace import DEVICE_HOURS, OPERATIONS, PRODUCTIVE
from align_jax.runs.provenance import count_starts, read_starts
from align_jax.runs.results import REPORT_FILE, read_results
from align_jax.training.run_config import RunConfig
from align_jax.training.training_runs import TRAINING, read_run_config

HASH = re.compile("-[0-9a-f]{8}$")  # the end of a run's folder in a sweep


@dataclasses.dataclass(frozen=True)
class FoundRun:
    """A run, as its folder records it.

    Attributes:
      place: path or URL of the run's folder.
      name: short name, unique among the runs that were found together.
      fields: the run's literal config.
      results: the final results by name, see `collect_results`; before the end, "step",
        the last step, and the latest "eval/..." scores.
      rows: metric lines, in order, that have scores or measures of speed.
      latest: the last value of every metric, by name.
      provenance: versions and devices of the last start, and the number of starts if
        there are more; empty if the file is missing.
      finished: whether the folder holds final results.
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
        """The folder's name without a sweep's hash, as in `PUBLISHED`."""
        return HASH.sub("", os.path.basename(self.place))

    @property
    def trains(self) -> bool:
        """Whether this is a training run."""
        return self.fields.get("run") in TRAINING

    @property
    def report(self) -> str | None:
        """Path of the run's report; None if there is none."""
        path = os.path.join(self.place, REPORT_FILE)
        return path if places.exists(path) else None

    @cached_property
    def config(self) -> RunConfig | None:
        """Config of a training run; None if another version of this code wrote it."""
        try:
            return read_run_config(self.fields) if self.trains else None
        except InputError:
            return None

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Number of parameters of each top-level part of the model, by the part's name.

        {} if the run is an evaluation or a search, or if its config cannot be read.
        """
        if self.config is None:
            return {}
        counts: Counter = Counter()
        for path, shape in variable_shapes(self.config.model).items():
            if path[0] == "params":
                counts[path[1]] += math.prod(shape)
        return dict(counts)

    @property
    def measures(self) -> dict[str, float]:
        """Values by the keys of `MEASURES`; unknown values and zeros are left out."""
        found: dict[str, float | None] = {"parameters": sum(self.parameters.values())}
        latest = self.latest
        if self.trains:
            step = int(latest.get("step", 0))
            phases = self.config.batch_phases if self.config else ()
            batch = self.fields["virtual_cores"] * self.fields["pairs_per_core"]
            pairs_seen = count_pairs(phases, step) if phases else step * batch
            found["pairs_seen"] = pairs_seen
            if phases and phases[0].batches > 1:
                found["pairs_trained"] = pairs_seen // phases[0].batches
            speed = latest.get("train/pairs_per_second_per_device")
            flops = latest.get("train/tflops_per_second_per_device")
            if speed and flops:  # operations per pair, times pairs
                found["flops"] = flops / speed * pairs_seen * 1e12
            if len(phases) > 1:  # with other operations per pair in each phase
                found["flops"] = latest.get(OPERATIONS, 0.0) * 1e12
        for name in ("pairs_per_second", "model_flops_utilisation", "goodput"):
            found[name] = latest.get(f"train/{name}")
        found["training_hours"] = latest.get(PRODUCTIVE, 0) / 3600
        found["device_hours"] = latest.get(DEVICE_HOURS)
        return {name: value for name, value in found.items() if value}


MEASURES = {
    "parameters": "parameters of the model",
    "pairs_seen": "pairs read for training, each as often as it was read",
    "pairs_trained": "pairs chosen from these to train on",
    "flops": "operations of the model, forward and backward",
    "pairs_per_second": "pairs per second, all devices, at the last measure",
    "model_flops_utilisation": "share of the devices' peak, where that is known",
    "goodput": "share of the time, interruptions included, in steps that were kept",
    "training_hours": "hours in steps that were kept",
    "device_hours": "hours of all devices, compiling and evaluating included",
}


def find_runs(typed: Sequence[str]) -> list[FoundRun]:
    """Finds the runs in some folders.

    An evaluation's scores are attached to the training run that it evaluated, if that
    run is found too, is at the same step and has no score of these names. Otherwise
    the evaluation is listed as a run.

    Args:
      typed: paths or URLs of runs' folders, or of folders that contain runs.

    A run whose files are damaged is named on stderr and left out.

    Returns:
      Training runs, then the other runs, each in the order in which they were found.

    Raises:
      InputError: a folder contains no run, or the files of all runs are damaged.
    """
    found: dict[str, None] = {}
    for place in typed:
        folders = [*_run_folders(_whole_path(place))]
        if not folders:
            raise InputError(
                f"{place} holds no run: no {CONFIG_FILE} in it or below; name"
                " workdirs, or a sweep's"
            )
        found |= dict.fromkeys(folders)
    names = _short_names([*found])
    runs = []
    for place, name in names.items():
        try:
            runs.append(_read(place, name))
        except InputError as error:
            reason = one_line(error)
            print(f"{place} is left out: {reason}", file=sys.stderr, flush=True)
    if not runs:
        raise InputError(f"the files of all runs of {', '.join(typed)} are damaged")
    return _join_evaluations(runs)


def _whole_path(place: str) -> str:
    """Returns the absolute path or the URL of a folder, without a final slash."""
    return places.resolve(place).rstrip("/") or "/"


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Returns {path: name}; the name is the end of the path.

    All names have the same number of folders, the smallest that makes them unique.
    """
    longest = max(path.count("/") for path in paths) + 1
    for count in range(1, longest + 1):
        names = {path: "/".join(path.split("/")[-count:]) for path in paths}
        if len({*names.values()}) == len(names):
            break
    return names


def _run_folders(place: str) -> Iterator[str]:
    """Yields `place` if it is a run's folder, or else the folders of runs below it.

    Folders inside a run, such as the trials of a search, are not visited; neither are
    those inside a corpus. A folder with a damaged config is yielded, as it may be a
    run's.
    """
    if is_claimed(place):
        with contextlib.suppress(InputError):
            config = places.read_object(os.path.join(place, CONFIG_FILE))
            if config.get("run") not in [*RUN_KINDS]:  # a corpus also has a config
                return
        yield place
    elif places.is_folder(place):
        for name in places.list_names(place):
            yield from _run_folders(os.path.join(place, name))


def _read(place: str, name: str) -> FoundRun:
    """Reads a run's files; raises InputError if one of them is damaged."""
    fields = places.read_object(os.path.join(place, CONFIG_FILE))
    _check_config(fields, os.path.join(place, CONFIG_FILE))
    starts = read_starts(place)
    # Runs have up to a million metric lines: keep those of intervals and evaluations.
    rows: list[dict[str, float]] = []
    latest: dict[str, float] = {}
    so_far: dict[str, float] = {}
    for row in stream_metrics(place):
        latest |= row
        scores = {k: v for k, v in row.items() if k.startswith("eval/")}
        so_far |= {"step": row["step"], **scores}
        if scores or PRODUCTIVE in row:
            rows.append(row)
    results = os.path.join(place, folder.RESULTS_FILE)
    return FoundRun(
        place=place,
        name=name,
        fields=fields,
        results=read_results(results) if places.exists(results) else so_far,
        rows=rows,
        latest=latest,
        provenance={**starts[-1], **count_starts(starts)} if starts else {},
        finished=folder.is_finished(place),
    )


def _check_config(fields: dict[str, Any], path: str) -> None:
    """Raises InputError for a config whose fields have types that no run has.

    A config of another version of this code passes.
    """
    wanted = {"virtual_cores": int, "pairs_per_core": int, "model": dict}
    if fields["run"] == "random_search":
        wanted = {"base": dict}
    for name, kind in wanted.items() if fields["run"] != "evaluate" else ():
        if not isinstance(fields.get(name), kind):
            found = fields.get(name)
            raise InputError(f"{path}: {name} is {found!r}; wanted {kind.__name__}")


def _join_evaluations(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """Attaches the scores of evaluations to training runs; see `find_runs`."""
    known = {run.place: run for run in runs if run.trains}
    rest = []
    for run in runs:
        if run.trains:
            continue
        checkpoint = run.fields.get("checkpoint")
        of = known.get(_whole_path(str(checkpoint))) if checkpoint else None
        if of and _adds(run, of):
            joined = dataclasses.replace(of, results={**run.results, **of.results})
            known[of.place] = joined
        else:
            rest.append(run)
    return [*known.values(), *rest]


def _adds(evaluation: FoundRun, run: FoundRun) -> bool:
    """Whether an evaluation has scores, all new to a run and of the run's last step."""
    scores = {name for name in evaluation.results if name.startswith("eval/")}
    same = evaluation.results.get("step") == run.results.get("step")
    return bool(scores) and same and not scores & {*run.results}


def changed_fields(runs: Sequence[FoundRun]) -> list[dict[str, Any]]:
    """Returns, for each run, {dotted path: value} of its unusual config fields.

    A field is listed if it differs from the most common value among the runs with the
    same `config.run`; a field that the run lacks has the value "absent". If a part of
    the config is None in some runs, these list the part, and the others its fields.
    Evaluators and fields that do not change the result are ignored. A field that an
    earlier version's config leaves out has the default.
    """
    flat = []
    for run in runs:
        execution = kind_of(run.fields).execution(run.fields)
        try:
            fields = as_json(fill_defaults(run.fields))
        except InputError:  # written by another version of this code
            fields = run.fields
        flat.append(_flatten(leave_out(fields, [*execution, "evaluators"])))
    changed: list[dict[str, Any]] = [{} for _ in runs]
    for kind in {run.fields.get("run") for run in runs}:
        alike = [i for i, run in enumerate(runs) if run.fields.get("run") == kind]
        for path in sorted({path for i in alike for path in flat[i]}):
            values = [repr(flat[i].get(path, "absent")) for i in alike]
            usual = Counter(values).most_common(1)[0][0]  # the first if tied
            for i, value in zip(alike, values, strict=True):
                if value != usual and not _is_of_part(path, flat[i]):
                    changed[i][path] = flat[i].get(path, "absent")
    return changed


def _is_of_part(path: str, flat: Mapping[str, Any]) -> bool:
    """Whether a run lacks a path because a part is None in it, or None in others.

    Args:
      path: dotted path of a field, or of a part that is None.
      flat: fields of the run by dotted path.
    """
    near = (
        f"{a}.".startswith(f"{b}.") for x in flat for a, b in ((x, path), (path, x))
    )
    return path not in flat and any(near)


def _flatten(fields: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Returns the leaves of a config by dotted path, each path prefixed by `above`."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = value
    return flat
