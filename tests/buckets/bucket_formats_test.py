"""Tars and Parquet files in a bucket give the batches of the same files on disk."""

import dataclasses

import numpy as np
import pytest

from align_jax import places
from align_jax.input.teacher import FIELDS
from data.doctor.__main__ import diagnose
from data.index import index_dataset
from tests.input.batches import assert_equal, batches
from tests.input.written import WRITERS, write_format
from tests.teachers import write_teacher

pytestmark = pytest.mark.buckets
STEPS = 30


@pytest.mark.parametrize("name", ["webdataset", "parquet"])
def test_files_in_a_bucket_are_read_by_few_requests(storage, tmp_path, name):
    part = write_format(name, tmp_path, [300, 200, 280])
    url = storage.upload(tmp_path / name, name)
    remote = dataclasses.replace(part, directory=url)
    if name == "webdataset":  # the copies are of another time
        index_dataset(url, workers=1)
    for start in (0, 1_000):
        requests, received = storage.requests.total(), storage.received.total()
        fields = {"batch": 16, "shuffle_window": 64}
        found = batches({"a": remote}, STEPS, start, **fields)
        requests = storage.requests.total() - requests
        received = storage.received.total() - received
        print(
            f"{name} from step {start}: {requests / STEPS:.1f} requests and"
            f" {received / STEPS:.0f} bytes a batch, with opening"
        )
        assert_equal(found, batches({"a": part}, STEPS, start, **fields))
        assert requests < 6 * STEPS


def test_the_embeddings_of_a_teacher_are_read_in_parts(storage, tmp_path):
    part = write_format("parquet", tmp_path, [300, 200, 280])
    rows = write_teacher(tmp_path / "teacher", part, width=640)
    url = storage.upload(tmp_path / "teacher", "teacher")
    remote = dataclasses.replace(part, teacher=url)
    for start in (0, 1_000):
        requests, received = storage.requests.total(), storage.received.total()
        fields = {"batch": 16, "shuffle_window": 64, "teacher_width": 640}
        found = batches({"a": remote}, STEPS, start, **fields)
        requests = storage.requests.total() - requests
        received = storage.received.total() - received
        print(
            f"teacher from step {start}: {requests / STEPS:.1f} requests and"
            f" {received / STEPS:.0f} bytes a batch, with opening"
        )
        for batch in found:
            numbers = batch["tokens"][:, 0]
            for field, expected in zip(FIELDS, rows, strict=True):
                np.testing.assert_allclose(batch[field], expected[numbers], atol=1e-6)
        assert requests < 6 * STEPS


@pytest.mark.parametrize("name", WRITERS)
def test_the_doctor_says_of_files_in_a_bucket_what_it_says_of_local_ones(
    storage, tmp_path, capsys, name
):
    write_format(name, tmp_path, [6, 5])
    folder = tmp_path / name
    (folder / "index.json").unlink(missing_ok=True)  # the copies are of another time
    [first, *_] = sorted(folder.glob(f"*.{name.replace('webdataset', 'tar')}"))
    damaged = first.with_name(f"train-x{first.suffix}")
    content = first.read_bytes()
    damaged.write_bytes(content[: len(content) * 2 // 3])
    url = storage.upload(folder, f"doctor_{name}")
    capsys.readouterr()
    said = []
    for place in (str(folder), url):
        findings = diagnose(places.as_path(place))
        assert [finding.what for finding in findings][:1] == ["damaged records"]
        assert findings[0].where.startswith(f"{place}/{damaged.name}, record")
        said.append(capsys.readouterr().out.replace(place, "FOLDER"))
    assert said[0] == said[1]
    assert "3 shards" in said[1]
