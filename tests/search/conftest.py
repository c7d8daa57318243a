"""An index of the tiny drawings, and a server that answers from it."""

import tempfile

import numpy as np
import pytest
from fastapi.testclient import TestClient

from align_jax.search.batching import BatchingEncoder
from align_jax.search.server import make_app
from align_jax.search.vector_index import Description, create_index
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect

NAMES = tiny.NAMES
WIDTH = len([*tiny.COLOURS, *tiny.SHAPES])


class PerfectEncoder(FixedEncoder):
    """A `FixedEncoder` with the argument `unreadable`, as a batch encoder passes it."""

    def __init__(self):
        super().__init__(perfect, perfect)

    def encode_images(self, pictures, unreadable=None):
        return super().encode_images(pictures)


@pytest.fixture
def index(tmp_path):
    index = create_index(str(tmp_path / "i"), Description("m", "c", WIDTH, 8))
    rows = np.float32([perfect(name) for name in NAMES])
    texts = [f"{name} <b>" for name in NAMES]
    index.put(NAMES, [""] * len(NAMES), texts, [b"a jpeg"] * len(NAMES), rows)
    return index


@pytest.fixture
def encoder():
    encoder = BatchingEncoder(PerfectEncoder(), 4, 100)
    yield encoder
    encoder.close()


@pytest.fixture
def client(index, encoder):
    labels, captions = [*tiny.COLOURS], ["red left", "blue right"]
    app = make_app(index, encoder, 0.1, labels, captions)
    return TestClient(app, base_url="http://127.0.0.1")


@pytest.fixture
def nothing_written(index, tmp_path, monkeypatch):
    """Checks that no file changes in the index, working and temporary folders."""
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # makes `tempfile` read TMPDIR again

    def files():
        there = {path: path.lstat() for path in tmp_path.rglob("*")}
        return {path: (s.st_size, s.st_mtime_ns) for path, s in there.items()}

    assert tempfile.gettempdir() == str(tmp_path / "temporary")  # tries to write there
    before = files()
    assert len(before) > 5
    yield
    assert files() == before
