"""Times tile sizes of the loss's GPU kernels: `python -m benchmarks.loss --choices`.

It times each kernel alone for several shapes, and the whole backward pass for several
chunks. The fastest belong in `contrastive_gpu.STATISTICS`, `GRADIENTS` and
`CHUNK_BYTES`.
"""

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp

from align_jax.devices.mesh import make_mesh
from align_jax.losses import contrastive_gpu
from align_jax.losses.logit_kernels import LOG2E, LogitGrid, TileShape
from align_jax.losses.logits import Directions, Logits
from align_jax.losses.tiles import WHOLE, make_tiling

SHAPES = (
    TileShape(256, 128, 64, warps=8, stages=3),
    TileShape(256, 128, 64, warps=8, stages=4),
    TileShape(128, 256, 64, warps=8, stages=3),
    TileShape(128, 128, 64, warps=4, stages=3),
    TileShape(128, 128, 64, warps=8, stages=3),
    TileShape(128, 128, 32, warps=4, stages=4),
    TileShape(256, 128, 128, warps=8, stages=2),
    TileShape(128, 64, 64, warps=4, stages=4),
)
# Sizes of a chunk. At N = 65,536 the second and the fourth fill 132 multiprocessors
# with tiles of 128 x 128.
MEBIBYTES = (256, 416, 512, 832, 1024)
COLUMNS = 8192  # texts of the gradient's kernel, whose time is proportional to them
THREADS = 8  # for compilation


def programs(n: int, arguments: tuple, smoothing: float) -> list[tuple]:
    """Returns the timed programs: name, function, arguments, products, calls per step.

    Args:
      n: number of pairs N, on one device.
      arguments: images and texts (N, D), and the temperature.
      smoothing: label smoothing.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    tiling = make_tiling(n, mesh, 1.0, None, "default")
    tiling = dataclasses.replace(tiling, kernels="triton")
    ximg, ytxt = (contrastive_gpu.rounded(x) for x in arguments[:2])
    temperature = arguments[2]
    lse = jnp.full(n, math.log(n))
    columns = math.gcd(n, COLUMNS)
    one = jnp.float32(1.0)
    numbers = jnp.stack([LOG2E / temperature, one, one])
    start = jnp.zeros(2, jnp.int32)
    product = 2 * n * n * ximg.shape[1]
    on_mesh = partial(
        jax.shard_map, mesh=mesh, in_specs=WHOLE, out_specs=WHOLE, check_vma=False
    )

    def statistics_of(shape: TileShape) -> Callable:
        def compute(ximg, ytxt, positive, temperature):
            logits = Logits(ximg, ytxt, temperature, tiling)
            return contrastive_gpu.statistics(logits, positive, shape)

        return on_mesh(compute)

    def kernel_of(shape: TileShape) -> Callable:
        grid = LogitGrid(n, columns, shape, tiling)
        return lambda *inputs: contrastive_gpu.logit_gradients(
            grid, numbers, start, inputs, smoothing
        )

    def gradients_of(chunk: int) -> Callable:
        def compute(ximg, ytxt, temperature, lse, one):
            return contrastive_gpu.gradients(
                Logits(ximg, ytxt, temperature, tiling),
                Directions(lse, lse),
                Directions(one, one),
                smoothing,
                shape=contrastive_gpu.GRADIENTS,
                chunk_bytes=chunk,
            )

        return on_mesh(compute)

    whole = (ximg, ytxt, lse, temperature)
    part = (ximg, ytxt[:columns], lse, lse[:columns])
    found = [("statistics", s, statistics_of(s), whole, product, 1) for s in SHAPES]
    found += [
        ("gradients", s, kernel_of(s), part, product, n // columns) for s in SHAPES
    ]
    whole = (ximg, ytxt, temperature, lse, one)
    return found + [
        ("backward", f"{m} MiB", gradients_of(m << 20), whole, 3 * product, 1)
        for m in MEBIBYTES
    ]


def sweep(
    n: int, arguments: tuple, smoothing: float, milliseconds: Callable
) -> list[dict]:
    """Prints a line for each choice, after all are compiled, and for each that fails.

    Args:
      n: number of pairs N, on one device.
      arguments: images and texts (N, D), and the temperature.
      smoothing: label smoothing.
      milliseconds: function that times a program with its arguments.
    """
    found = programs(n, arguments, smoothing)
    rows = []
    with ThreadPoolExecutor(THREADS) as pool:
        compiled = [
            pool.submit(lambda f, a: jax.jit(f).lower(*a).compile(), function, inputs)
            for _, _, function, inputs, _, _ in found
        ]
    for (part, choice, _, inputs, product, calls), program in zip(
        found, compiled, strict=True
    ):
        row = {"part": part, "choice": str(choice)}
        try:
            row["milliseconds"] = calls * milliseconds(program.result(), inputs)
            row["bytes"] = program.result().memory_analysis().temp_size_in_bytes
            speed = product / row["milliseconds"] / 1e9
            line = f"{row['milliseconds']:8.2f} ms {speed:6.0f} TFLOP/s"
            line += f" {row['bytes'] / 2**20:6.0f} MiB"
        except Exception as error:
            row["error"] = line = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{part:<10} {line}  {choice}", flush=True)
        rows.append(row)
    return rows
