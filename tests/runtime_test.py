import os
import subprocess
import sys

PROGRAM = """
import resource
import jax, jax.numpy as jnp
from align_jax.runtime import reuse_memory

reuse_memory()
# 144 MB of temporaries
compute = jax.jit(lambda x: jax.lax.optimization_barrier(jnp.sin(x @ x.T)).sum())
x = jnp.ones((6_000, 8))

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    compute(x).block_until_ready()
before = faults()
for _ in range(3):
    compute(x).block_until_ready()
print((faults() - before) // 3)
"""


def test_a_programs_temporaries_are_mapped_once():
    # Mapped anew they are 35,000 page faults of 4 KiB.
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"XLA_FLAGS": ""},  # one device
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) < 1_000
