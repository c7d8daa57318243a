"""A block of the image tower as the TPU compiler schedules it, without a TPU.

    python -m benchmarks.tpu_block --topology=v5e:2x2 --size=37 --channels=64 --batch=64

Two residual blocks, forward and backward, for each choice of kernels: bytes of memory
traffic, and the compiler's own estimate of cycles (with the extra `tpu`). It has none
for kernels written by hand. Their schedules are written out by
LIBTPU_INIT_ARGS="--xla_jf_dump_to=FOLDER --xla_jf_dump_llo_text=true".
"""

import argparse
import re
import time

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from align_jax.devices.kernel_choice import MOSAIC, PLAIN, Kernels
from align_jax.models.mbconv import Block, MBConv
from align_jax.plan import find_devices

BLOCKS = 2
SHOWN = 8


def compile_blocks(kind: str, flags: argparse.Namespace) -> jax.stages.Compiled:
    """Compiles the gradient of blocks, one after the other."""
    shape = Block(flags.kernel, 1, 6, flags.channels, flags.channels, residual=True)
    kernels = Kernels(kind)
    norm = {"group_size": flags.group, "kernels": kernels}
    block = MBConv(shape, norm, dtype=jnp.bfloat16, kernels=kernels)
    device = SingleDeviceSharding(find_devices(flags.topology)[0])

    def like(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)

    x = jax.ShapeDtypeStruct(
        (flags.batch, flags.size, flags.size, flags.channels), jnp.bfloat16
    )
    one = jax.eval_shape(
        lambda x: block.init(jax.random.key(0), x, None, train=False), x
    )
    variables, x = jax.tree.map(like, ([one] * BLOCKS, x))

    def total(params, statistics, x):
        for own, batch_stats in zip(params, statistics, strict=True):
            own = {"params": own, "batch_stats": batch_stats}
            x, _ = block.apply(own, x, None, train=True, mutable=["batch_stats"])
        return x.astype(jnp.float32).sum()

    params, statistics = (
        [v[name] for v in variables] for name in ("params", "batch_stats")
    )
    gradient = jax.jit(jax.grad(total, argnums=(0, 2)))
    return gradient.lower(params, statistics, x).compile()


def main() -> None:
    """Prints what the compiler counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--size", type=int, default=37)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--kernel", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--group", type=int, default=16)
    flags = parser.parse_args()
    wide = 2 * flags.batch * flags.size**2 * flags.channels * 6
    for kind in (PLAIN, MOSAIC):
        start = time.perf_counter()
        step = compile_blocks(kind, flags)
        seconds = time.perf_counter() - start
        moved, text = step.cost_analysis()["bytes accessed"], step.as_text()
        found = []
        for line in text.splitlines():
            if cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
                name = re.search(r'op_name="([^"]*)"', line)
                found.append((int(cycles[1]), name[1][-70:] if name else ""))
        cycles = sum(cycles for cycles, _ in found) / BLOCKS
        kernels = text.count('custom_call_target="tpu_custom_call"') // BLOCKS
        print(
            f"{kind}: a block moves {moved / BLOCKS / 1e9:.2f} GB,"
            f" {moved / wide / BLOCKS:.1f} times its expanded array;"
            f" {cycles / 1e6:.2f} million cycles and {kernels} kernels;"
            f" compiled in {seconds:.0f} s",
            flush=True,
        )
        for cycles, name in sorted(found, reverse=True)[:SHOWN]:
            print(f"  {cycles / 1e6:.2f} {name}")


if __name__ == "__main__":
    main()
