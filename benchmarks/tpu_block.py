"""Counts what blocks of the image tower move on a TPU, with kernels and without.

    python -m benchmarks.tpu_block --target=v5e:2x2 --size=73 --channels=48 --kernel=3

The TPU compiler (pip's extra `tpu`) compiles two equal blocks, forward and backward,
computed again for the backward pass, on one device. Each block has the bytes that it
reads from and writes to HBM (`benchmarks.traffic`), also with the padding of tiles, and
the compiler's estimate of cycles. It has no estimate for kernels written by hand. With
LIBTPU_INIT_ARGS="--xla_jf_dump_to=FOLDER --xla_jf_dump_llo_text=true" their schedules
are written to the last files of FOLDER, "*-final_bundles.txt".
"""

import argparse
import re
import time
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from align_jax.devices.kernel_choice import MOSAIC, PLAIN, Kernels
from align_jax.models.batch_norm import BatchNorm
from align_jax.models.layers import rematerialised
from align_jax.models.mbconv import Block, MBConv
from align_jax.plan import find_devices
from benchmarks.traffic import count_traffic, with_padding

BLOCKS = 2


def compile_blocks(kind: str, flags: argparse.Namespace) -> jax.stages.Compiled:
    """Compiles the gradient of equal blocks, one after the other."""
    shape = Block(
        flags.kernel, 1, flags.expansion, flags.channels, flags.channels, True
    )
    kernels = Kernels(kind)
    norm = partial(BatchNorm, group_size=flags.group, kernels=kernels)
    make_block = rematerialised(MBConv, "blocks", 3)
    block = make_block(shape, norm, dtype=jnp.bfloat16, kernels=kernels)
    device = SingleDeviceSharding(find_devices(flags.target)[0])

    def like(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)

    size = (flags.batch, flags.size, flags.size, flags.channels)
    x = jax.ShapeDtypeStruct(size, jnp.bfloat16)
    one = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, None, False), x)
    params, statistics, x = jax.tree.map(
        like, ([one["params"]] * BLOCKS, [one["batch_stats"]] * BLOCKS, x)
    )

    def run(params: list, statistics: list, x: jax.Array) -> tuple[jax.Array, list]:
        changed = []
        for weights, running in zip(params, statistics, strict=True):
            variables = {"params": weights, "batch_stats": running}
            x, new = block.apply(variables, x, None, True, mutable=["batch_stats"])
            changed.append(new)
        return x, changed

    def step(params: list, statistics: list, x: jax.Array, cotangent: jax.Array):
        out, pull, changed = jax.vjp(
            lambda params, x: run(params, statistics, x), params, x, has_aux=True
        )
        return out, changed, pull(cotangent)

    return jax.jit(step).lower(params, statistics, x, x).compile()


def main() -> None:
    """Prints a line for each kind of kernels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="v5e:2x2", help="a TPU slice")
    parser.add_argument("--size", type=int, default=73, help="pixels of a side")
    parser.add_argument("--channels", type=int, default=48, help="of input and output")
    parser.add_argument("--expansion", type=int, default=6)
    parser.add_argument("--kernel", type=int, default=3, help="side of the kernel")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--group", type=int, default=16, help="of one normalisation")
    flags = parser.parse_args()
    for kind in (PLAIN, MOSAIC):
        start = time.perf_counter()
        compiled = compile_blocks(kind, flags)
        text = str(compiled.as_text())
        moved, padded = count_traffic(text), count_traffic(with_padding(text))
        cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
        kernels = text.count('custom_call_target="tpu_custom_call"')
        print(
            f"{kind}: a block moves {moved / BLOCKS / 1e9:.2f} GB"
            f" ({padded / BLOCKS / 1e9:.2f} with padding), XLA's operations take"
            f" {cycles / BLOCKS / 1e6:.1f} million cycles, {kernels / BLOCKS:.0f}"
            f" kernels; compiled in {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
