"""Tests two slices of four devices, each of two processes, against one device."""

import json

import numpy as np
import pytest

from align_jax.models.parameters import unflatten
from tests import steps
from tests.slice_processes import PROCESSES
from tests.worker_processes import run_joined

pytestmark = pytest.mark.pods


def test_two_slices_end_in_the_parameters_of_one_device(tmp_path, mesh_of):
    config = steps.read(tmp_path / "run")  # writes the data that all processes read
    run_joined("tests.slice_processes", tmp_path, PROCESSES)
    arrays = np.load(tmp_path / "variables.npz")
    variables = unflatten({tuple(name.split("/")): arrays[name] for name in arrays})
    rows = json.loads((tmp_path / "metrics.json").read_text())
    assert len(rows) == steps.COUNT
    steps.assert_same(rows, variables, steps.run(config, mesh_of(1)))
