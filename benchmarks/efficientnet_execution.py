"""Compile time, step time and memory of an EfficientNet, by mode of execution.

    python -m benchmarks.efficientnet_execution --variant=b3 --image_size=96 --batch=8

It prints one line for each choice of `scan` and `rematerialise`: forward and backward
pass in training mode with BatchNorm groups of `--group`, without a compilation cache.
Ratios are to the first line, which is unrolled and computes nothing twice.
"""

import argparse
import itertools
import statistics
import time

import jax
import jax.numpy as jnp

from align_jax.models.efficientnet import VARIANTS, EfficientNet, EfficientNetConfig


def measure(config: EfficientNetConfig, flags: argparse.Namespace) -> tuple:
    """Returns seconds to compile, median seconds per step, and temporary bytes."""
    dtype = jnp.dtype(flags.dtype)
    model = EfficientNet(config, flags.group, dtype)
    images = jnp.zeros((flags.batch, flags.image_size, flags.image_size, 3))
    cores = jnp.arange(flags.batch // flags.group)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, cores, False))
    variables = jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype), shapes)

    def score(params, statistics, images):
        out, changed = model.apply(
            {"params": params, "batch_stats": statistics},
            images,
            cores,
            True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        return jnp.square(out).sum(), changed

    step = jax.jit(jax.grad(score, has_aux=True))
    arguments = (variables["params"], variables["batch_stats"], images)
    start = time.perf_counter()
    compiled = step.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(flags.steps + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    memory = compiled.memory_analysis().temp_size_in_bytes
    return compile_seconds, statistics.median(seconds[1:]), memory


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=VARIANTS, default="b3")
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=5)
    flags = parser.parse_args()
    print(
        f"{flags.variant}, {flags.image_size} px, batch {flags.batch}, {flags.dtype},"
    )
    print(f"on {jax.devices()[0].device_kind}; ratios to the first line in brackets")
    print(f"{'scan':>5} {'again':>7} {'compile s':>16} {'step s':>16} {'temp MiB':>16}")
    width, depth = VARIANTS[flags.variant]
    first = None
    for again, scan in itertools.product(("none", "blocks", "stages"), (False, True)):
        config = EfficientNetConfig(width, depth, scan=scan, rematerialise=again)
        found = measure(config, flags)
        first = first or found
        cells = [
            f"{value:.{digits}f} ({value / base:.2f})"
            for value, base, digits in zip(
                (found[0], found[1], found[2] / 2**20),
                (first[0], first[1], first[2] / 2**20),
                (1, 2, 0),
                strict=True,
            )
        ]
        print(f"{scan!s:>5} {again:>7} " + " ".join(f"{c:>16}" for c in cells))


if __name__ == "__main__":
    main()
