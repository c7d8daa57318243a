"""A stand-in for Cloud Storage and one run on a disk, for all tests of the folder."""

import json

import pytest

from tests import tiny
from tests.buckets.remote_runs import finish, start
from tests.buckets.storage import serve
from tests.run_tiny import STEPS


@pytest.fixture(scope="package")
def storage(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as found:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in found.environment.items():
                patch.setenv(name, value)
            yield found


@pytest.fixture(scope="package")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="package")
def fields(root):
    return tiny.make_run(
        root / "data",
        total_steps=STEPS,
        evaluate_every_steps=10,
        checkpoint={"every_steps": 5, "keep": 2},
    )


@pytest.fixture(scope="package")
def remote_fields(storage, root, fields):
    url = storage.upload(root / "data", "data")
    return json.loads(json.dumps(fields).replace(str(root / "data"), url))


@pytest.fixture(scope="package")
def local(root, fields):
    """The workdir of a run on a local disk."""
    finish(start(root, fields, root / "local"))
    return root / "local"
