"""Starts runs in separate processes, and compares them with a run on a disk."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from tensorboard.backend.event_processing import event_accumulator

from align_jax.weights.source import open_weights
from tests.buckets.storage import ROOT
from tests.run_tiny import STEPS, rows

COMMITTED = "/commit_success.txt"  # the last object of a checkpoint
# Starts after kills wait for the killed run's lock; this is faster than `main.py`.
PATIENCE = 5.0  # seconds
IMPATIENT = (
    "import sys; from align_jax import locks;"
    f" locks.PATIENCE, locks.BEAT = {PATIENCE}, 1.0;"
    " import main; sys.exit(main.main())"
)


def start(root, fields, workdir, program=("main.py",)):
    """Starts `main.py` on a config; it compiles each program once for all tests."""
    path = root / f"config_{abs(hash(json.dumps(fields)))}.py"
    text = json.dumps(json.dumps(fields))
    path.write_text(
        "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({text}))\n"
    )
    devices = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
    cache = str(root / "compiled")
    return subprocess.Popen(
        [sys.executable, *program, f"--config={path}", f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "XLA_FLAGS": devices},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return out


def refused(process):
    """Waits for a run that ends with one line on stderr, and returns the line."""
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors, errors
    (line,) = [x for x in errors.splitlines() if x.startswith("main.py: ")]
    return line


def assert_same(workdir, other):
    assert rows(workdir) == rows(other)
    found, wanted = open_weights(str(workdir)), open_weights(str(other))
    assert found.step == wanted.step == STEPS
    assert found.variables.keys() == wanted.variables.keys()
    for name, array in wanted.variables.items():
        np.testing.assert_array_equal(found.variables[name], array)


def wait_for_checkpoint(storage, process, run):
    while not any(
        name.endswith(COMMITTED) for name in storage.names(f"{run}/checkpoints/")
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def read_curve(storage, run, folder=None, name="train/loss"):
    """Returns the points (step, value) of a run's curve in TensorBoard.

    Args:
      storage: the stand-in that holds the run, or None for a run on a disk.
      run: name of the run in the bucket, or its local workdir.
      folder: local folder to copy the files of a run in the bucket to.
      name: name of the curve.
    """
    local = pathlib.Path(run) / "tensorboard"
    if storage is not None:
        local = folder / "tensorboard"
        local.mkdir()
        for events in storage.names(f"{run}/tensorboard/events"):
            (local / events.rpartition("/")[2]).write_bytes(storage.read(events))
    curves = event_accumulator.EventAccumulator(str(local), {"scalars": 0}).Reload()
    return [(point.step, point.value) for point in curves.Scalars(name)]
