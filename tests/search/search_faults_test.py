"""Builds of an index, in separate processes, that are killed at random moments."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from align_jax.search.vector_index import open_index
from tests import tiny

pytestmark = pytest.mark.faults
TIMES = 4
COLUMNS = ("state", "text", "thumbnail", "embedding")
# The command, with small batches, so that there are many.
BUILD = (
    "from align_jax.search import __main__ as command, indexing;"
    " indexing.AT_ONCE = 4; indexing.COMPACT_EVERY = 3; command.main()"
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Returns a function that starts a build of 48 pictures into a folder."""
    folder = tmp_path_factory.mktemp("search")
    model = tiny.write_model(folder / "model")
    (folder / "pictures").mkdir()
    for i in range(48):
        drawing = tiny.draw(tiny.NAMES[i % len(tiny.NAMES)], i)
        (folder / "pictures" / f"{i:02}.png").write_bytes(drawing)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}

    def start(place):
        flags = (f"--checkpoint={model}", f"--images={folder / 'pictures'}")
        return subprocess.Popen(
            [sys.executable, "-c", BUILD, "build", *flags, f"--out={place}"],
            cwd=pathlib.Path(__file__).parents[2],
            env=os.environ | cache,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def content(place):
    """Returns all rows of an index by id."""
    index = open_index(str(place))
    return index.rows(sorted(index.ids()), *COLUMNS)


def finish(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


def test_a_killed_build_ends_as_one_that_was_not(start, tmp_path):
    assert "48 pictures; 48 added" in finish(start(tmp_path / "whole"))
    whole, moments = content(tmp_path / "whole"), random.Random(0)
    assert len(whole) == 48
    partly = 0
    for turn in range(TIMES):
        place = tmp_path / str(turn)
        process = start(place)
        wanted = moments.randrange(1, 13) if turn else 0  # changes of the table
        versions = place / "pictures.lance" / "_versions"
        while not place.exists() or len([*versions.glob("*")]) < wanted:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(0.1 * moments.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed = process.returncode == -signal.SIGKILL
        told = finish(start(place))
        kept = int(told.partition(" there already")[0].rpartition(" ")[2])
        assert f"48 pictures; {48 - kept} added" in told
        partly += killed and 0 < kept < 48
        found = content(place)
        assert found.keys() == whole.keys()
        for name, row in found.items():
            own = whole[name]
            assert np.allclose(row.pop("embedding"), own["embedding"], atol=1e-6)
            assert row == {key: own[key] for key in row}
    assert partly  # killed in the middle at least once
