"""Launchers of a sweep: on this machine, as printed commands, or by SkyPilot."""

import argparse
import collections
import contextlib
import hashlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import tqdm
import yaml

from align_jax import places
from align_jax.config import claim_folder
from align_jax.errors import STOPPED, InputError, Preempted, one_line
from align_jax.report.run_kinds import fill_defaults
from align_jax.runs import workdir as folder
from align_jax.sweep.config import Search, SweepRun
from align_jax.sweep.status import (
    Status,
    count_states,
    failure_path,
    format_status,
    is_locked,
    locked_log,
    log_path,
    read_status,
)
from align_jax.training.random_search_config import search_execution

MAIN = pathlib.Path(__file__).parents[2] / "main.py"
POLL = 2  # seconds between checks of a run
# The longest job name; clouds limit the names of the resources that a job creates.
LONGEST_NAME = 50


def run_here(runs: Sequence[SweepRun], flags: argparse.Namespace) -> None:
    """Runs one run after the other; a failure is reported and does not stop the others.

    Finished runs are skipped, and so are runs that are running elsewhere. A run of
    another process on this machine is waited for.

    Args:
      runs: list of the sweep's runs.
      flags: flags of the command, of which `workdir` and `retry` (whether to run failed
        runs again) are used.

    Raises:
      InputError: the workdir is a URL, a folder belongs to another run or search, or
        some runs are not done at the end.
      Preempted: SIGTERM stopped the sweep or its current run.
      KeyboardInterrupt: Ctrl-C stopped the sweep; its current run got SIGTERM.
    """
    if places.is_url(flags.workdir):
        raise InputError(
            f"--workdir is {flags.workdir}; the launcher 'local' wants a local folder"
        )
    statuses = [read_status(run) for run in runs]
    print(format_status(statuses), flush=True)
    for run, status in zip(runs, statuses, strict=True):
        elsewhere = status.state == "running" and not is_locked(run)
        if elsewhere or (status.state == "failed" and not flags.retry):
            continue
        if status.state != "done":
            _run(run)
            statuses = [read_status(other) for other in runs]
            print(count_states(statuses), flush=True)
    print(format_status(statuses), flush=True)
    failed = {
        run.id: places.read_object(failure_path(run), {"reason": str})["reason"]
        for run, status in zip(runs, statuses, strict=True)
        if status.state == "failed"
    }
    if any(status.state != "done" for status in statuses):
        told = [f"\n  {name}: {reason}" for name, reason in failed.items()]
        hint = "; --retry runs those that failed again" if failed else ""
        states = f"not all are done: {count_states(statuses)}{hint}"
        raise InputError("".join([states, *told]))


def _run(run: SweepRun) -> None:
    """Runs one run in a separate process, and waits for its end.

    The process writes to the file of `log_path`. If it fails, the reason is printed and
    written to the file of `failure_path`. The file of an earlier failure is removed.

    Raises:
      Preempted: SIGTERM stopped this process or the run.
      InputError: the search's folder belongs to another config.
    """
    if run.search is not None:  # first, as a folder with a log alone is refused
        _claim(run.search)
    with locked_log(run) as log, _Termination():
        if folder.is_finished(run.workdir):  # by the process that held the lock
            return
        places.remove(failure_path(run))
        before = log.tell()
        # Ctrl-C does not reach another session: the run gets SIGTERM from us instead.
        process = subprocess.Popen(
            [sys.executable, str(MAIN), *run.flags],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = _follow(run, process)
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        if code in (STOPPED, -signal.SIGTERM):
            raise Preempted(f"{run.id} was told to stop")
        if code:
            reason = _reason(run, code, before)
            failure = {"code": code, "reason": reason}
            places.write_json(failure_path(run), failure)
            print(f"{run.id} failed: {reason}", flush=True)


def _reason(run: SweepRun, code: int, before: int) -> str:
    """Returns why a run failed: a signal, or the last line that the run logged.

    Args:
      run: the failed run.
      code: exit code of the run; -N for signal N.
      before: size of the log in bytes when the run started.
    """
    if code < 0:
        return f"killed by signal {-code}; {log_path(run)} has what it printed"
    with places.opening(log_path(run)) as file:
        file.seek(before)
        printed = file.read().decode(errors="replace")
    lines = [line for line in printed.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}"


class _Termination:
    """A context in which SIGTERM raises Preempted."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTERM, self._raise)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    @staticmethod
    def _raise(number: int, frame: object) -> None:
        raise Preempted("told to stop")


def _follow(run: SweepRun, process: subprocess.Popen) -> int:
    """Shows a progress bar until a run ends; returns its exit code, -N for signal N."""
    interval = 1.0 if sys.stderr.isatty() else 60.0
    total = run.fields.get("total_steps")
    with tqdm.tqdm(desc=run.id, total=total, unit="step", mininterval=interval) as bar:
        while process.poll() is None:
            time.sleep(POLL)
            with contextlib.suppress(InputError):  # a file that is being written
                status = read_status(run)
                bar.set_postfix_str(_measures(status), refresh=False)
                bar.update(status.step - bar.n)
    return process.returncode


def _measures(status: Status) -> str:
    speed = status.pairs_per_second
    shown = [f"{speed:,.0f} pairs/s"] if speed else []
    loss = status.metrics.get("train/loss")
    return ", ".join(shown + ([f"loss {loss:.3f}"] if loss is not None else []))


def print_commands(runs: Sequence[SweepRun], flags: argparse.Namespace) -> None:
    """Prints the commands of the stopped and the waiting runs, one per line.

    With --retry, the commands of failed runs are printed too. If a run belongs to a
    search, the search's folder is created and bound to its config.

    Raises:
      InputError: a folder belongs to another run or search, or cannot be written.
    """
    for run in _to_run(runs, flags.retry):
        print(run.command)


def write_jobs(runs: Sequence[SweepRun], flags: argparse.Namespace) -> None:
    """Writes a SkyPilot task, and prints its launch command, for each run to start.

    These are the stopped and the waiting runs and, with --retry, the failed ones. The
    tasks are files in the folder --jobs, which is created; each is a copy of --template
    with the run's name and command. Searches' folders are created as in
    `print_commands`.

    Raises:
      InputError: the template is missing or no SkyPilot task, a folder belongs to
        another run or search, or the workdir is a local folder, which would be lost
        with a job's machine.
    """
    if not places.is_url(flags.workdir):
        raise InputError(
            f"--workdir is {flags.workdir}, which ends with a job's machine; wanted a"
            " bucket, as gs://BUCKET/FOLDER"
        )
    try:
        template = yaml.safe_load(places.read_text(places.resolve(flags.template)))
    except (InputError, yaml.YAMLError) as error:
        reason = one_line(error)
        raise InputError(f"--template={flags.template}: {reason}") from error
    if not isinstance(template, dict) or "run" not in template:
        raise InputError(
            f"--template={flags.template} is no SkyPilot task with a field 'run'"
        )
    places.make_folder(flags.jobs)
    names = _job_names([run.id for run in runs])
    for run in _to_run(runs, flags.retry):
        name = names[run.id]
        flags_of_all = [*run.flags, "--distributed"]  # every host of a slice takes part
        command = shlex.join([".venv/bin/python", "main.py", *flags_of_all]) + "\n"
        task = {**template, "name": name, "run": command}
        task.pop("envs", None)  # variables of the replaced command
        path = os.path.join(flags.jobs, f"{name}.yaml")
        places.write_text(path, yaml.safe_dump(task, sort_keys=False))
        print(shlex.join(["sky", "jobs", "launch", "--yes", "--detach-run", path]))


def _job_names(ids: Sequence[str]) -> dict[str, str]:
    """Returns a job name for each run's id: its last letters, digits and hyphens.

    A name that two ids would have ends with a hash of the id instead.
    """
    names = {run: re.sub("[^a-z0-9]+", "-", run.lower()) for run in ids}
    names = {run: name[-LONGEST_NAME:].strip("-") for run, name in names.items()}
    count = collections.Counter(names.values())
    for run, name in names.items():
        if count[name] > 1:
            ending = hashlib.sha256(run.encode()).hexdigest()[:8]
            names[run] = f"{name[-(LONGEST_NAME - 9) :].strip('-')}-{ending}"
    return names


def show_status(runs: Sequence[SweepRun], flags: argparse.Namespace) -> None:
    """Prints the table of `format_status`."""
    print(format_status([read_status(run) for run in runs]))


def _to_run(runs: Sequence[SweepRun], retry: bool) -> list[SweepRun]:
    """Returns the stopped and the waiting runs, and the failed ones if `retry` is true.

    The folders of their searches are created and bound to the searches' configs.
    """
    wanted = {"stopped", "waiting"} | ({"failed"} if retry else set())
    found = [run for run in runs if read_status(run).state in wanted]
    searches = {run.search.workdir: run.search for run in found if run.search}
    for search in searches.values():
        _claim(search)
    return found


def _claim(search: Search) -> None:
    """Creates a search's folder and binds it to its config, as `main.py` would."""
    execution = search_execution(search.fields)
    claim_folder(search.workdir, search.fields, execution, fill_defaults)


LAUNCHERS: dict[str, Callable[[Sequence[SweepRun], argparse.Namespace], None]] = {
    "local": run_here,
    "print": print_commands,
    "skypilot": write_jobs,
    "status": show_status,
}
