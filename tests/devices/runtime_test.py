import os
import platform
import resource
import subprocess
import sys

import pytest

from align_jax.devices.runtime import reuse_memory

PROGRAM = """
import resource, statistics
import jax, jax.numpy as jnp
from align_jax.devices.runtime import reuse_memory
from align_jax.input.image_batches import augment_batches

reuse_memory()
assert not [*augment_batches(iter([]))]
# 324 MB of temporaries
compute = jax.jit(lambda x: jax.lax.optimization_barrier(jnp.sin(x @ x.T)).sum())
x = jnp.ones((9_000, 8))

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

found = []
for _ in range(15):
    before = faults()
    compute(x).block_until_ready()
    found.append(faults() - before)
print(statistics.median(found))
"""


def test_a_programs_temporaries_stay_mapped():
    # New memory costs 79,000 page faults of 4 KiB. A few calls need it: the first ones,
    # and on a loaded machine some later ones.
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"XLA_FLAGS": ""},  # one device
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(found.stdout) < 1_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc only")
def test_freed_memory_is_used_again():
    reuse_memory()  # the tests have eight devices
    for size, blocks in ((40_000, 200), (3_000_000, 4)):

        def take_and_free(size=size, blocks=blocks):
            held = [b"x" * size for _ in range(blocks)]
            return len(held)

        take_and_free()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        assert take_and_free() == blocks
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        assert faults < size * blocks / resource.getpagesize() / 10
