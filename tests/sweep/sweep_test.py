"""Sweeps: each run runs once, and states are reported; a script plays the runs."""

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
from align_jax.errors import InputError, Preempted
from align_jax.runs import workdir
from align_jax.sweep import __main__ as sweep
from align_jax.sweep import launchers
from align_jax.sweep.config import open_sweep
from align_jax.sweep.status import Status, format_status, locked_log, read_status
from align_jax.training.random_search_config import search_execution

ROOT = pathlib.Path(__file__).parents[2]

SWEEP = """
from configs import quickstart
from configs.sweeps.choose_run import choose_run

def get_sweep():
    base = quickstart.get_config()
    base.total_steps = 100
    names = ("first", "second", "third")
    return {name: (base, {"seed": i}) for i, name in enumerate(names)}

def get_config(name):
    return choose_run(get_sweep(), name)
"""

# Plays a run: `behaviour.json` beside it says how the run of each seed behaves.
MAIN = """
import json, os, pathlib, signal, sys, time
sys.path.insert(0, "{root}")
from align_jax.command_line import read_command_line
flags = read_command_line(sys.argv)
here, workdir = pathlib.Path(__file__).parent, pathlib.Path(flags.workdir)
workdir /= flags.fields.get("only", "")
with open(here / "ran", "a") as file:
    file.write(workdir.name.split("-")[0] + "\\n")
told = json.loads((here / "behaviour.json").read_text())
behaviour = told.get(str(flags.fields["seed"]), "ends")
workdir.mkdir(exist_ok=True, parents=True)
fields = flags.fields
if fields.get("only"):  # a trial has its own config
    fields = json.loads((here / "trial.json").read_text())
(workdir / "config.tmp").write_text(json.dumps(fields))
(workdir / "config.tmp").rename(workdir / "config.json")
row = {{"step": 40, "train/loss": 1.5, "train/pairs_per_second": 256.0}}
(workdir / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
def stop(number, frame):
    with open(here / "signals", "a") as file:
        file.write(f"{{number}}\\n")
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
if behaviour == "fails":
    sys.exit("main.py: the disk is full")
if behaviour == "stops":
    sys.exit(143)
if behaviour == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "waits":
    (here / "waits").touch()
    time.sleep(60)
if behaviour == "is slow":
    time.sleep(1.5)
(workdir / "results.json").write_text("{{}}")
"""


class Place:
    """A sweep's file and folder, and control over the behaviour of its runs."""

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "sweep.py"
        self.file.write_text(SWEEP)
        (folder / "main.py").write_text(MAIN.format(root=ROOT))
        self.behave({})

    def behave(self, behaviour):
        (self.folder / "behaviour.json").write_text(json.dumps(behaviour))

    @property
    def ran(self):
        path = self.folder / "ran"
        return path.read_text().split() if path.exists() else []

    def launch(self, *flags, sweeps=None):
        """Runs the sweep command."""
        argv = [f"--sweep={name}" for name in sweeps or [self.file]]
        sweep.main([*argv, f"--workdir={self.folder / 'out'}", *flags])

    def runs(self, *flags):
        return open_sweep(str(self.file), str(self.folder / "out"), flags)

    def states(self):
        return [read_status(run).state for run in self.runs()]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "MAIN", tmp_path / "main.py")
    monkeypatch.setattr(launchers, "POLL", 0.05)
    return Place(tmp_path)


def test_every_run_is_run_once_and_equal_runs_of_two_sweeps_are_one(place, capsys):
    assert place.states() == ["waiting"] * 3
    other = place.folder / "other.py"
    other.write_text(SWEEP)
    place.launch(sweeps=[f"{place.file}:first,second", other])
    assert sorted(place.ran) == ["first", "second", "third"]
    assert place.states() == ["done"] * 3
    place.launch()
    assert len(place.ran) == 3
    assert capsys.readouterr().out.endswith("3 done\n")


def test_a_failed_run_stops_no_other_and_runs_again_on_request(place, capsys):
    place.behave({"1": "fails"})
    with pytest.raises(InputError, match="1 failed; --retry.*\n  second-.*disk is"):
        place.launch()
    assert place.states() == ["done", "failed", "done"]
    place.behave({})
    with pytest.raises(InputError, match="not all are done: 2 done, 1 failed; --retry"):
        place.launch()
    assert place.ran == ["first", "second", "third"]
    place.launch("--launcher=print")
    assert not capsys.readouterr().out.count("main.py --config")
    place.behave({"1": "is killed"})
    with pytest.raises(InputError, match="second-.*: killed by signal 9; .*log has"):
        place.launch("--retry")
    place.behave({})
    place.launch("--retry")
    assert place.ran[3:] == ["second"] * 2 and place.states() == ["done"] * 3


def test_a_run_that_was_told_to_stop_by_others_ends_the_sweep(place):
    place.behave({"1": "stops"})
    with pytest.raises(Preempted, match="second-.* was told to stop"):
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
    assert process.wait() == 0 and place.ran == ["first", "second", "third"]


def test_ids_are_of_what_is_computed(place):
    ids = [run.id for run in place.runs()]
    assert len({*ids}) == 3 and ids == [run.id for run in place.runs()]
    assert ids == [run.id for run in place.runs("--config.microbatches=2")]
    changed = place.runs("--config.loss.label_smoothing=0.2")
    assert not {*ids} & {run.id for run in changed}
    assert changed[1].fields["loss"]["label_smoothing"] == 0.2


def test_evaluations_of_two_checkpoints_are_two_runs(place):
    place.file.write_text(
        SWEEP.replace("quickstart.get_config()", "zero_shot.get_config('simlex')")
        .replace("base.total_steps = 100", "")
        .replace("import quickstart", "import zero_shot")
        .replace('{"seed": i}', '{"embeddings": name}')
    )
    one = place.runs("--config.checkpoint=runs/one")
    other = place.runs("--config.checkpoint=runs/other")
    assert not {run.id for run in one} & {run.id for run in other}


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
        assert python == sys.executable and argv[0] == "main.py" and flags.distributed
        assert flags.fields == run.fields and flags.workdir == run.workdir
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
    assert python == ".venv/bin/python" and told.distributed
    assert (told.fields, told.workdir) == (run.fields, f"gs://bucket/out/{run.id}")
    before = yaml.safe_load(template.read_text())
    assert task["resources"] == before["resources"] and task["name"] == run.id.lower()
    with pytest.raises(InputError, match="is no SkyPilot task"):
        sweep.main([*cloud, *flags, f"--template={place.folder / 'behaviour.json'}"])
    with pytest.raises(InputError, match="ends with a job's machine; wanted a bucket"):
        place.launch(*flags)


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
    assert fields.workdir == "/out" and runs[7].workdir == "/out/vtab_dtd/trial_07"
    assert fields.fields["only"] == "vtab_dtd/trial_07"
    assert runs[7].fields["total_steps"] in (250, 500, 1000, 2500)
    out = str(place.folder / "out")
    runs = open_sweep("configs/vtab.py:dtd", out, flags)[:1]
    (place.folder / "trial.json").write_text(json.dumps(runs[0].fields))
    given = sweep.read_flags([f"--sweep={place.file}", f"--workdir={out}"])
    launchers.run_here(runs, given)
    assert read_status(runs[0]).state == "done" and place.ran == ["trial_00"]
    argv = ["main.py", "--config=configs/vtab.py:dtd", *flags, f"--workdir={out}"]
    whole = read_command_line(argv)  # the search then accepts its folder
    workdir.check(out, whole.fields, search_execution(whole.fields))


def test_the_table_tells_what_is_known():
    statuses = [
        Status("one-12345678", "running", 1500, 6000, 1234.4, 3725.2, {"loss": 1.25}),
        Status("two-12345678", "waiting", 0, None, None, None, {}),
    ]
    head, one, two, counts = format_status(statuses).splitlines()
    assert one.split() == (
        "one-12345678 running 1,500 / 6,000 1,234 1:02:05 loss 1.250".split()
    )
    assert two.split() == ["two-12345678", "waiting", "0"]
    assert head.index("step") + 4 == one.index("6,000") + 5
    assert counts == "1 running, 1 waiting"


def test_a_running_run_s_time_left_is_of_its_speed(place):
    run = place.runs()[0]
    (pathlib.Path(run.workdir)).mkdir(parents=True)
    config = json.dumps(run.fields)
    (pathlib.Path(run.workdir) / "config.json").write_text(config)
    rows = [
        {"step": 20, "train/loss": 3.0, "eval/coco/mean_recall": 0.25},
        {"step": 50, "train/loss": 2.0, "train/pairs_per_second": 256.0},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (pathlib.Path(run.workdir) / "metrics.jsonl").write_text(lines)
    metrics = pathlib.Path(run.workdir) / "metrics.jsonl"
    assert read_status(run).state == "running"  # elsewhere
    os.utime(metrics, (0, time.time() - 1000))
    status = read_status(run)
    assert (status.state, status.step, status.total) == ("stopped", 50, 100)
    assert status.seconds_left == 50 * 128 / 256
    assert status.metrics == {"train/loss": 2.0, "coco/mean_recall": 0.25}


def test_bad_sweeps_are_refused(place):
    def refused(message, argument, *flags):
        with pytest.raises(InputError, match=message):
            open_sweep(str(argument), "out", flags)

    refused("'none.py', which is no file", "none.py")
    refused("'frist'; did you mean 'first'", f"{place.file}:frist")
    refused("no field 'sed'; did you mean 'seed'", place.file, "--config.sed=1")
    refused("label_smoothing is 2.0", place.file, "--config.loss.label_smoothing=2.0")
    refused("no get_sweep.* of run = 'pretrain'", "configs/quickstart.py")
    (place.folder / "none.py").write_text("def get_sweep():\n    return {}")
    refused("has no runs", place.folder / "none.py")
    with pytest.raises(InputError, match="'local' wants a local folder"):
        flags = sweep.read_flags(["--sweep=x", "--workdir=gs://bucket/x"])
        launchers.run_here([], flags)


def test_another_run_s_folder_is_not_taken(place):
    run = place.runs()[0]
    (pathlib.Path(run.workdir)).mkdir(parents=True)
    (pathlib.Path(run.workdir) / "notes.txt").touch()
    with pytest.raises(InputError, match="not empty and holds no config.json"):
        place.launch()
    assert not place.ran
