"""A sweep whose runs are played by a script."""

import json
import pathlib

import pytest

from align_jax.sweep import __main__ as sweep
from align_jax.sweep import launchers
from align_jax.sweep.config import open_sweep
from align_jax.sweep.status import read_status

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
