"""Reads a sweep: the runs that one file lists, each with a separate folder.

The file has `get_sweep()`, which returns {name: (base config, {dotted path: value})},
and `get_config(name)`, which returns the config of one of these runs to `main.py`. A
file without `get_sweep()` is the config of a random search, whose trials are the runs.
"""

import dataclasses
import hashlib
import json
import os
import runpy
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from align_jax import places
from align_jax.command_line import CommandLine, read_command_line
from align_jax.config import as_json, choose, leave_out, read_config
from align_jax.errors import InputError
from align_jax.report.run_kinds import kind_of
from align_jax.training.random_search_config import SearchConfig


@dataclasses.dataclass(frozen=True)
class Search:
    """A random search whose trials are the runs: its folder and its literal config."""

    workdir: str
    fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
      id: name of the run's folder. In a sweep, this is the run's name and a hash of the
        fields that change the result, so that two sweeps share a run if it has the same
        name and result in both. In a search, it is the trial's name.
      fields: the literal config of the run; for a trial, that of the trial.
      flags: flags with which `main.py` starts the run.
      workdir: path or URL of the run's folder.
      search: search of which the run is a trial; None for runs of `get_sweep`.
    """

    id: str
    fields: Mapping[str, Any]
    flags: tuple[str, ...]
    workdir: str
    search: Search | None = None

    @property
    def command(self) -> str:
        """The shell command that starts the run from the repository's root folder."""
        return shlex.join([sys.executable, "main.py", *self.flags])


def open_sweep(
    argument: str, workdir: str, flags: Sequence[str] = ()
) -> list[SweepRun]:
    """Executes a sweep's file, and reads and checks every run's config.

    Args:
      argument: "FILE", or "FILE:NAME,NAME" for some of its runs; for a search, the
        value of `main.py`'s flag --config.
      workdir: path or URL of the sweep's folder.
      flags: further flags of `main.py` for every run.

    Raises:
      InputError: the file or a run does not exist, there are no runs, or a config is
        invalid or neither a sweep nor a random search.
    """
    argument = places.resolve(argument) if argument.startswith("~") else argument
    path, _, chosen = argument.partition(":")
    if not places.is_file(path):
        raise InputError(f"--sweep is {path!r}, which is no file")
    contents = runpy.run_path(path)
    if "get_sweep" not in contents:
        return _open_search(argument, workdir, flags)
    known = contents["get_sweep"]()
    if not known:
        raise InputError(f"{path} has no runs: get_sweep() is empty")
    names = chosen.split(",") if chosen else [*known]
    runs = []
    for name in names:
        choose(known, name, argument)
        config = (f"--config={path}:{name}", *flags)
        fields = _read(config, workdir).fields
        kind = kind_of(fields, f"config {name}")
        kind.check(fields, f"config {name}")
        computed = as_json(leave_out(fields, kind.execution(fields)))
        identity = json.dumps(computed, sort_keys=True)
        run_id = f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
        place = os.path.join(workdir, run_id)
        runs.append(SweepRun(run_id, fields, (*config, f"--workdir={place}"), place))
    return runs


def _open_search(argument: str, workdir: str, flags: Sequence[str]) -> list[SweepRun]:
    """Lists a random search's trials as runs; arguments and errors as in `open_sweep`.

    The trials' folders are those that `main.py` would use for the whole search, so
    `main.py` can finish the search in the same workdir.
    """
    config = (f"--config={argument}", *flags)
    fields = _read(config, workdir).fields
    if fields.get("run") != "random_search":
        raise InputError(
            f"--sweep={argument} has no get_sweep() and is a config of run ="
            f" {fields.get('run')!r}; wanted a sweep or a search"
        )
    if "only" not in fields:
        raise InputError(f"{argument} lacks the field 'only'; set config.only = ''")
    search = read_config(SearchConfig, fields)
    search.check()
    return [
        SweepRun(
            name,
            search.trial_fields(task, trial),
            (*config, f"--config.only={name}", f"--workdir={workdir}"),
            os.path.join(workdir, name),
            Search(workdir, fields),
        )
        for name, (task, trial) in search.trial_names().items()
    ]


def _read(flags: Sequence[str], workdir: str) -> CommandLine:
    return read_command_line(["main.py", *flags, f"--workdir={workdir}"])
