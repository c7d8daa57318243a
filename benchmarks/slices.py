"""Counts the bytes that cross between two slices in a step of the loss.

    python -m benchmarks.slices
    python -m benchmarks.slices --topology=2xv5e:2x2

The loss gathers embeddings in two steps, see `align_jax.losses.exchange.gather`. The
table has the same program with one gather over all devices beside it. It is compiled
for eight CPU devices as two slices, or for slices of TPUs by the TPU compiler.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from align_jax.devices.collectives import count_collectives
from align_jax.devices.mesh import (
    BATCH_AXES,
    batch_split,
    make_mesh,
    replicated,
    slices_of,
)
from align_jax.losses import contrastive, exchange, softmax_terms
from align_jax.plan import find_devices


def compile_gradient(mesh: jax.sharding.Mesh, pairs: int, width: int) -> str:
    """Compiles the loss and its gradients; returns the text of the program."""
    rows, whole = batch_split(mesh), replicated(mesh)
    loss = jax.value_and_grad(
        lambda x, y, s: contrastive.contrastive_loss(x, y, s, mesh, 0.1)[0], (0, 1, 2)
    )
    embeddings = jax.ShapeDtypeStruct((pairs, width), jnp.float32, sharding=rows)
    temperature = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    lowered = jax.jit(loss).lower(embeddings, embeddings, temperature)
    return str(lowered.compile().as_text())


def print_row(name: str, program: str, slices: np.ndarray) -> None:
    """Prints the bytes of a program's collectives as a row of the table."""
    found = count_collectives(program, slices).values()
    crossing = sum(count.crossing for count in found)
    print(f"| {name} | {crossing:,} | {sum(count.size for count in found):,} |")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--topology", help="such as 2xv5e:2x2; CPU devices by default")
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--width", type=int, default=640)
    flags = parser.parse_args()
    if flags.topology:
        mesh = make_mesh(1, find_devices(flags.topology))
    else:
        mesh = make_mesh(1, slices=np.repeat([0, 1], jax.device_count() // 2).tolist())
    print("| gather | bytes a device receives from other slices | results, bytes |")
    print("|---|---|---|")
    program = compile_gradient(mesh, flags.pairs, flags.width)
    print_row("in two steps", program, slices_of(mesh))
    jax.clear_caches()
    exchange.gather = lambda x: lax.all_gather(x, BATCH_AXES, tiled=True)
    for module in (exchange, softmax_terms):
        module.scatter_sum = lambda x: lax.psum_scatter(x, BATCH_AXES, tiled=True)
    program = compile_gradient(mesh, flags.pairs, flags.width)
    print_row("over all devices", program, slices_of(mesh))


if __name__ == "__main__":
    main()
