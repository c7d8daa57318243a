"""One of two processes with four devices each: python -m tests.two_processes ..."""

import json
import pathlib
import sys
from functools import partial

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from align_jax.loss import contrastive_loss
from align_jax.parameters import flatten
from align_jax.sharding import batch_split, make_mesh
from tests import steps
from tests.reference import embeddings

CASES = [(8, 0.0, 1 / 128), (8, 0.1, 1.0), (256, 0.0, 1.0), (256, 0.1, 1 / 128)]


def main(root: str, address: str, index: str) -> None:
    """Writes losses, gradients and a few steps' results into `root`."""
    jax.distributed.initialize(address, 2, int(index))
    mesh = make_mesh()
    arrays = {}
    for case, (n, smoothing, temperature) in enumerate(CASES):
        rows = [
            jax.make_array_from_callback(
                x.shape, batch_split(mesh), x.astype(np.float32).__getitem__
            )
            for x in embeddings(n)
        ]
        loss = partial(contrastive_loss, mesh=mesh, label_smoothing=smoothing, tile=24)
        gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        (value, _), gradients = gradient(*rows, np.float32(temperature))
        arrays[f"loss/{case}"] = value
        for i, found in enumerate(gradients):
            arrays[f"gradient/{case}/{i}"] = process_allgather(found, tiled=True)
    metrics, _, end, _ = steps.run(steps.read(pathlib.Path(root) / "run"), mesh)
    variables = flatten(end.own_variables)
    arrays |= {"variables/" + "/".join(path): x for path, x in variables.items()}
    if index == "0":
        np.savez(pathlib.Path(root) / "arrays.npz", **arrays)
        (pathlib.Path(root) / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(*sys.argv[1:])
