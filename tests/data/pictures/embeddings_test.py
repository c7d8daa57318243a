import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from data.pictures import embeddings
from data.pictures.embeddings import check_model, embed_pictures, read_embeddings

VECTOR = pa.list_(pa.float32(), 2)


def write(path, vectors, kind=VECTOR):
    names = pa.array([f"{i}" for i in range(len(vectors))], pa.string())
    pq.write_table(
        pa.table({"image_id": names, "embedding": pa.array(vectors, kind)}), path
    )


def test_pictures_without_an_embedding_are_left_out(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, [[0.6, 0.8], None, [1, 0], None])
    names, found = read_embeddings(path)
    assert names.to_pylist() == ["0", "2"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([[0.6, 0.8], [1, 0]], np.float32))
    for vectors in ([], [None, None]):
        write(path, vectors)
        names, found = read_embeddings(path)
        assert names.to_pylist() == []
        assert found.shape == (0, 2)


def test_what_holds_no_embeddings_is_refused(tmp_path):
    path = tmp_path / "a.parquet"

    def refused(message="a.parquet"):
        with pytest.raises(InputError, match=message):
            read_embeddings(path)

    refused()
    path.write_text("no table")
    refused()
    write(path, [1.0, 2.0], pa.float32())
    refused()
    write(path, [[1.0], [0.6, 0.8]], pa.list_(pa.float32()))
    refused()
    pq.write_table(pa.table({"embedding": pa.array([[1, 0]], VECTOR)}), path)
    refused()
    write(path, [[1, 0], [3, 4]])
    refused("row 1 has length 5.0, wanted unit vectors")


def test_a_model_that_is_not_there_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_run", lambda *arguments: pytest.fail("started"))
    with pytest.raises(
        InputError, match=r"embedding_model is '.*nowhere', which is not"
    ):
        check_model(str(tmp_path / "nowhere"))


def test_the_last_line_of_a_failed_process_is_the_error(tmp_path):
    with pytest.raises(InputError) as caught:
        check_model(str(tmp_path))
    message = str(caught.value)
    assert "config.pictures.embedding_model is" in message
    assert "\n" not in message
    assert "ended with exit code 2" in message
    assert "is a folder without any: wanted one with model.json" in message


def test_a_process_gets_the_paths_and_is_ended_with_us(tmp_path, monkeypatch):
    """A stand-in for the interpreter prints its arguments, then sleeps."""
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\necho "$*" >&2\necho $$ >&2\nexec sleep 600\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    shown = []

    class Terminal:
        def isatty(self):
            return True

        def write(self, text):
            shown.append(text)
            if "".join(shown).count("\n") == 2:
                raise KeyboardInterrupt

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyboardInterrupt):
        embed_pictures("run", tmp_path / "in", tmp_path / "out", 7)
    said, process = "".join(shown).split("\n")[:2]
    assert said == (
        f"-m align_jax.embed --model=run --images={tmp_path}/in --out={tmp_path}/out"
        " --batch_size=7 --child"
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)
