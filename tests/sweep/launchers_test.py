"""Each run of a sweep runs once, also when runs fail or are stopped."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from align_jax.command_line import read_command_line
from align_jax.config import check_folder
from align_jax.errors import InputError, Preempted
from align_jax.sweep import __main__ as sweep
from align_jax.sweep import launchers
from align_jax.sweep.config import open_sweep
from align_jax.sweep.status import locked_log, read_status
from align_jax.training.random_search_config import search_execution

ROOT = pathlib.Path(__file__).parents[2]


def test_every_run_is_run_once_and_equal_runs_of_two_sweeps_are_one(place, capsys):
    assert place.states() == ["waiting"] * 3
    other = place.folder / "other.py"
    other.write_text(place.file.read_text())
    place.launch(sweeps=[f"{place.file}:first,second", other])
    assert sorted(place.ran) == ["first", "second", "third"]
    assert place.states() == ["done"] * 3
    place.launch()
    assert len(place.ran) == 3
    assert capsys.readouterr().out.endswith("3 done\n")


def test_a_failed_run_stops_no_other_and_runs_again_on_request(place, capsys):
    place.behave({"1": "fails"})
    with pytest.raises(InputError, match=r"1 failed; --retry.*\n  second-.*disk is"):
        place.launch()
    assert place.states() == ["done", "failed", "done"]
    place.behave({})
    with pytest.raises(InputError, match="not all are done: 2 done, 1 failed; --retry"):
        place.launch()
    assert place.ran == ["first", "second", "third"]
    place.launch("--launcher=print")
    assert not capsys.readouterr().out.count("main.py --config")
    place.behave({"1": "is killed"})
    with pytest.raises(InputError, match=r"second-.*: killed by signal 9; .*log has"):
        place.launch("--retry")
    place.behave({})
    place.launch("--retry")
    assert place.ran[3:] == ["second"] * 2
    assert place.states() == ["done"] * 3


def test_a_run_that_was_told_to_stop_by_others_ends_the_sweep(place):
    place.behave({"1": "stops"})
    with pytest.raises(Preempted, match=r"second-.* was told to stop"):
        place.launch()
    assert place.states() == ["done", "stopped", "waiting"]


@pytest.mark.parametrize(
    ("number", "error"), [("SIGTERM", Preempted), ("SIGINT", KeyboardInterrupt)]
)
def test_a_notice_to_stop_reaches_the_run_once_and_it_goes_on(place, number, error):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    place.behave({"1": "waits"})

    def notify():
        while not (place.folder / "waits").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), getattr(signal, number))

    thread = threading.Thread(target=notify)
    thread.start()
    try:
        with pytest.raises(error):
            place.launch()
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    signals = (place.folder / "signals").read_text().split()
    assert signals == [str(signal.SIGTERM.value)]  # the signal on which a run saves
    assert place.states() == ["done", "stopped", "waiting"]
    place.behave({})
    place.launch()
    assert place.ran == ["first", "second", "second", "third"]
    assert place.states() == ["done"] * 3


def test_a_run_whose_sweep_was_killed_is_waited_for(place, capsys):
    place.behave({"0": "is slow"})
    run = place.runs()[0]
    with locked_log(run) as log:
        command = [sys.executable, "main.py", *run.flags]
        process = subprocess.Popen(command, cwd=place.folder, stdout=log, stderr=log)
    assert read_status(run).state == "running"
    place.launch("--launcher=print")
    assert run.id not in capsys.readouterr().out
    place.launch()
    assert f"{run.id} runs in another process; waiting" in capsys.readouterr().out
    assert process.wait() == 0
    assert place.ran == ["first", "second", "third"]


def test_printed_commands_run_the_same_configs(place, capsys):
    place.launch(
        "--launcher=print",
        "--",
        "--config.loss.temperature_floor=0.05",
        "--distributed",
    )
    lines = capsys.readouterr().out.splitlines()
    runs = place.runs("--config.loss.temperature_floor=0.05", "--distributed")
    assert len(lines) == 3
    for line, run in zip(lines, runs, strict=True):
        python, *argv = shlex.split(line)
        flags = read_command_line(argv)
        assert python == sys.executable
        assert argv[0] == "main.py"
        assert flags.distributed
        assert flags.fields == run.fields
        assert flags.workdir == run.workdir
        assert flags.fields["loss"]["temperature_floor"] == 0.05


def test_a_job_is_the_template_with_the_run_s_command(place, capsys, monkeypatch):
    jobs = place.folder / "jobs"
    template = ROOT / "launch" / "sky_tpu.yaml"
    runs = open_sweep(str(place.file), "gs://bucket/out")
    monkeypatch.setattr(launchers, "_to_run", lambda runs, retry: runs)  # no bucket
    flags = [f"--jobs={jobs}", f"--template={template}", "--launcher=skypilot"]
    cloud = [f"--sweep={place.file}", "--workdir=gs://bucket/out"]
    sweep.main([*cloud, *flags])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(jobs.iterdir())) == 3
    run = runs[0]
    path = lines[0].split()[-1]
    task = yaml.safe_load(pathlib.Path(path).read_text())
    assert lines[0] == f"sky jobs launch --yes --detach-run {path}"
    python, *argv = shlex.split(task["run"])
    told = read_command_line(argv)
    assert python == ".venv/bin/python"
    assert told.distributed
    assert (told.fields, told.workdir) == (run.fields, f"gs://bucket/out/{run.id}")
    before = yaml.safe_load(template.read_text())
    assert task["resources"] == before["resources"]
    assert task["name"] == run.id.lower()
    with pytest.raises(InputError, match="is no SkyPilot task"):
        sweep.main([*cloud, *flags, f"--template={place.folder / 'behaviour.json'}"])
    with pytest.raises(InputError, match="ends with a job's machine; wanted a bucket"):
        place.launch(*flags)


def test_jobs_of_different_runs_have_different_names():
    long = "task/" + "x" * launchers.LONGEST_NAME
    ids = ["a_b/trial_00", "a-b/trial_00", "A.b", f"one {long}", f"other {long}"]
    names = launchers._job_names(ids)
    assert len({*names.values()}) == len(ids)
    assert names["A.b"] == "a-b"
    assert all(len(name) <= launchers.LONGEST_NAME for name in names.values())
    assert names["a_b/trial_00"].startswith("a-b-trial-00-")
    assert launchers._job_names([*reversed(ids)]) == names


@pytest.mark.launch
def test_skypilot_reads_a_job(place, monkeypatch):
    jobs = place.folder / "jobs"
    template = ROOT / "launch" / "sky_tpu.yaml"
    monkeypatch.setattr(launchers, "_to_run", lambda runs, retry: runs)  # no bucket
    flags = [f"--jobs={jobs}", f"--template={template}", "--launcher=skypilot"]
    sweep.main([f"--sweep={place.file}", "--workdir=gs://bucket/out", *flags])
    program = """
import sys, yaml, sky
task = sky.Task.from_yaml_config(yaml.safe_load(open(sys.argv[1])))
assert next(iter(task.resources)).use_spot and "main.py --config=" in task.run
"""
    python = ROOT / ".venv-launch" / "bin" / "python"
    for path in jobs.iterdir():
        subprocess.run([str(python), "-c", program, str(path)], check=True)


def test_the_trials_of_a_search_are_runs_in_its_folders(place):
    flags = ("--config.base.initialize.image_tower=RUN",)
    runs = open_sweep("configs/vtab.py:dtd", "/out", flags)
    assert [run.id for run in runs][::49] == ["vtab_dtd/trial_00", "vtab_dtd/trial_49"]
    fields = read_command_line(["main.py", *runs[7].flags])
    assert fields.workdir == "/out"
    assert runs[7].workdir == "/out/vtab_dtd/trial_07"
    assert fields.fields["only"] == "vtab_dtd/trial_07"
    assert runs[7].fields["total_steps"] in (250, 500, 1000, 2500)
    out = str(place.folder / "out")
    runs = open_sweep("configs/vtab.py:dtd", out, flags)[:1]
    (place.folder / "trial.json").write_text(json.dumps(runs[0].fields))
    given = sweep.read_flags([f"--sweep={place.file}", f"--workdir={out}"])
    launchers.run_here(runs, given)
    assert read_status(runs[0]).state == "done"
    assert place.ran == ["trial_00"]
    argv = ["main.py", "--config=configs/vtab.py:dtd", *flags, f"--workdir={out}"]
    whole = read_command_line(argv)  # the search then accepts its folder
    check_folder(out, whole.fields, search_execution(whole.fields))


def test_an_unknown_launcher_is_refused_before_the_sweep_is_read():
    message = "--launcher is 'slurm'; known: local, print, skypilot, status"
    with pytest.raises(InputError, match=message):
        sweep.main(["--sweep=nowhere", "--workdir=/out", "--launcher=slurm"])


def test_the_local_launcher_wants_a_local_folder():
    flags = sweep.read_flags(["--sweep=x", "--workdir=gs://bucket/x"])
    with pytest.raises(InputError, match="'local' wants a local folder"):
        launchers.run_here([], flags)


def test_another_run_s_folder_is_not_taken(place):
    run = place.runs()[0]
    (pathlib.Path(run.workdir)).mkdir(parents=True)
    (pathlib.Path(run.workdir) / "notes.txt").touch()
    with pytest.raises(InputError, match=r"not empty and holds no config\.json"):
        place.launch()
    assert not place.ran
