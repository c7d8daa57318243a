"""Tars and Parquet files in a bucket give the batches of the same files on disk."""

import dataclasses

import pytest

from data.index import index_dataset
from tests.input.batches import assert_equal, batches
from tests.input.written import write_format

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
