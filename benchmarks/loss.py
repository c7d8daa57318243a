"""Time and memory of the contrastive loss, in tiles against all N x N logits at once.

    python -m benchmarks.loss --sizes 4096 8192 16384 --json loss.json

Forward pass and all gradients on one device, float32, label smoothing 0.1. The two
implementations take turns, so that a busy machine slows both; milliseconds are
medians, memory is what the compiled program allocates beside inputs and outputs.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

from align_jax.loss import contrastive_loss
from align_jax.sharding import make_mesh

SMOOTHING = 0.1


def dense_loss(ximg: jax.Array, ytxt: jax.Array, temperature: jax.Array) -> jax.Array:
    """The same loss written plainly; holds all logits."""
    logits = ximg @ ytxt.T / temperature  # (N, N)
    positive = logits.diagonal()
    loss = 0.0
    for axis in (0, 1):
        lse = jax.nn.logsumexp(logits, axis)
        mean = logits.mean(axis)
        loss += (lse - (1.0 - SMOOTHING) * positive - SMOOTHING * mean).mean()
    return loss


def compile_both(n: int, flags: argparse.Namespace) -> dict:
    """Compiled programs of value and gradients, by implementation."""
    mesh = make_mesh(devices=jax.devices()[:1])

    def tiled(ximg, ytxt, temperature):
        loss, _ = contrastive_loss(
            ximg,
            ytxt,
            temperature,
            mesh,
            SMOOTHING,
            tile=flags.tile,
            precision=flags.precision,
        )
        return loss

    rows = jax.ShapeDtypeStruct((n, flags.width), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    with jax.default_matmul_precision(flags.precision):
        return {
            name: jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
            .lower(rows, rows, scalar)
            .compile()
            for name, loss in (("tiled", tiled), ("dense", dense_loss))
        }


def measure(n: int, flags: argparse.Namespace) -> list[dict]:
    """One row an implementation."""
    compiled = compile_both(n, flags)
    embeddings = jax.random.normal(jax.random.key(0), (2, n, flags.width))
    embeddings /= jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
    arguments = (*embeddings, jnp.float32(1 / 64))
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(flags.repeats + 1):  # the first warms up
        for name, program in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds[name].append(time.perf_counter() - start)
    return [
        {
            "implementation": name,
            "n": n,
            "milliseconds": 1e3 * statistics.median(seconds[name][1:]),
            "peak_bytes": program.memory_analysis().temp_size_in_bytes,
        }
        for name, program in compiled.items()
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--width", type=int, default=640, help="D, 640 for B7")
    parser.add_argument("--tile", type=int)
    parser.add_argument("--precision", default="highest")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="file for the rows")
    flags = parser.parse_args()
    print(f"D = {flags.width}, {flags.precision}, {jax.devices()[0].device_kind}")
    print(
        f"{'N':>6} {'tiled ms':>9} {'dense ms':>9} {'dense / tiled':>13}"
        f" {'tiled MiB':>10} {'dense MiB':>10} {'dense / tiled':>13}"
    )
    rows = []
    for n in flags.sizes:
        tiled, dense = found = measure(n, flags)
        rows += found
        times = [row["milliseconds"] for row in (tiled, dense)]
        memory = [row["peak_bytes"] / 2**20 for row in (tiled, dense)]
        print(
            f"{n:>6} {times[0]:>9.0f} {times[1]:>9.0f} {times[1] / times[0]:>13.2f}"
            f" {memory[0]:>10.0f} {memory[1]:>10.0f} {memory[1] / memory[0]:>13.1f}",
            flush=True,
        )
    if flags.json:
        with open(flags.json, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
