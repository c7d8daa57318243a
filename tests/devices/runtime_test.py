import os
import pathlib
import platform
import resource
import subprocess
import sys

import pytest

from align_jax.devices.runtime import return_memory, reuse_memory

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


COMMANDS = """
import sys
from jax._src import xla_bridge  # JAX has no public function for it
from align_jax import compile, random_search, train
from configs import quickstart, vtab

class Called(Exception):
    pass

def reuse_memory():
    assert not xla_bridge.backends_are_initialized()
    raise Called

quickstart = quickstart.get_config().to_dict()
search = vtab.get_config()
search.base.initialize.image_tower = sys.argv[1]
for module, command, fields in (
    (train, train.train, quickstart),
    (compile, compile.compile_run, quickstart),
    (random_search, random_search.random_search, search.to_dict()),
):
    module.reuse_memory = reuse_memory
    try:
        command(fields, sys.argv[1])
    except Called:
        print(module.__name__)
"""


def test_commands_keep_memory_before_jax_starts(tmp_path):
    # Once JAX has started its devices, programs stay in threads whose memory goes back.
    found = subprocess.run(
        [sys.executable, "-c", COMMANDS, tmp_path / "run"],
        env=os.environ | {"XLA_FLAGS": ""},  # one device
        capture_output=True,
        text=True,
        check=False,
    )
    names = ["align_jax.train", "align_jax.compile", "align_jax.random_search"]
    assert found.stdout.split() == names, found.stderr


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


ARROW = """
import os, resource, sys, time
from align_jax.devices.runtime import start
if sys.argv[2:]:
    start(tensorflow=False)
import pyarrow as pa
import pyarrow.parquet as pq
table = pa.table({"picture": [os.urandom(40_000) for _ in range(256)]})
pq.write_table(table, sys.argv[1], row_group_size=100)
def read():
    for _ in range(6):
        file = pq.ParquetFile(sys.argv[1], buffer_size=2**21)
        for _ in file.iter_batches(64, use_threads=False):
            time.sleep(0.02)
read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
read()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize("started", [True, False])
def test_parquet_files_are_read_into_kept_memory_after_start(tmp_path, started):
    found = subprocess.run(
        [sys.executable, "-c", ARROW, tmp_path / "a.parquet", *["start"] * started],
        env={n: v for n, v in os.environ.items() if not n.startswith("MIMALLOC")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (int(found.stdout) < 100) == started


def resident() -> int:
    """Returns the bytes of this process in memory."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc only")
def test_freed_memory_can_be_returned_once():
    reuse_memory()
    size = 200 * 2**20
    blocks = [b"x" * 2**20 for _ in range(200)]
    last = b"x" * 2**20  # the end of the heap, without which nothing is returned
    del blocks
    held = resident()
    return_memory()
    assert resident() < held - size / 2
    assert len(last) == 2**20
