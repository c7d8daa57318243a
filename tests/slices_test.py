"""Tests two slices of four devices, each of two processes, against one device."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from align_jax.models.parameters import unflatten
from tests import steps
from tests.slice_processes import PROCESSES

pytestmark = pytest.mark.pods


def test_two_slices_end_in_the_parameters_of_one_device(tmp_path, mesh_of):
    config = steps.read(tmp_path / "run")  # writes the data that all processes read
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={8 // PROCESSES}")
    command = [sys.executable, "-m", "tests.slice_processes", str(tmp_path), address]
    workers = [
        subprocess.Popen(
            [*command, str(index)],
            cwd=pathlib.Path(__file__).parents[1],
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(PROCESSES)
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=500)
        assert worker.returncode == 0, output
    arrays = np.load(tmp_path / "variables.npz")
    variables = unflatten({tuple(name.split("/")): arrays[name] for name in arrays})
    rows = json.loads((tmp_path / "metrics.json").read_text())
    assert len(rows) == steps.COUNT
    steps.assert_same(rows, variables, steps.run(config, mesh_of(1)))
