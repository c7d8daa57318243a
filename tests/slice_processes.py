"""Trains in one of four processes of two devices: python -m tests.slice_processes ...

Two processes are a slice.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from align_jax.devices import mesh as meshes
from align_jax.models.parameters import flatten
from tests import steps

PROCESSES = 4
FSDP = 4  # the state is split over the two processes of a slice


def main(root: str, address: str, index: str) -> None:
    """Writes the metrics and the variables after a few steps to `root`."""
    meshes.SMALL = 2**10  # so that even a tiny block is split
    jax.distributed.initialize(address, PROCESSES, int(index))
    slices = [device.process_index // 2 for device in jax.devices()]
    mesh = meshes.make_mesh(FSDP, slices=slices)
    config = steps.read(pathlib.Path(root) / "run", fsdp=FSDP)
    metrics, _, end, _ = steps.run(config, mesh)
    variables = flatten(end.own_variables)
    if index == "0":
        arrays = {"/".join(path): x for path, x in variables.items()}
        np.savez(pathlib.Path(root) / "variables.npz", **arrays)
        (pathlib.Path(root) / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(*sys.argv[1:])
