"""Storage that fails for a moment or for good, and objects that were deleted."""

import itertools
import json
import random
import re
import sys

import pytest

import align_jax
from align_jax import places
from align_jax.embed import __main__ as embed
from align_jax.errors import InputError
from align_jax.evaluate import evaluate
from align_jax.report import __main__ as report
from align_jax.runs.metric_lines import read_metrics
from align_jax.search.vector_index import open_index
from align_jax.sweep.config import SweepRun
from align_jax.sweep.status import read_status
from align_jax.train import train
from align_jax.training.checkpoint import list_steps
from align_jax.weights.source import open_weights
from tests import tiny
from tests.buckets.remote_runs import (
    COMMITTED,
    IMPATIENT,
    assert_same,
    finish,
    read_curve,
    refused,
    start,
)
from tests.buckets.storage import HALF_ANSWER, LOST_ANSWER, LOST_REQUEST
from tests.run_tiny import STEPS

pytestmark = pytest.mark.buckets

PASSING = [503] * 5 + [429, LOST_REQUEST, LOST_ANSWER, HALF_ANSWER]
SHARE = 0.01 * len(PASSING)  # of the requests; 5 % get 503


def test_failures_that_pass_change_nothing(
    storage, root, remote_fields, local, tmp_path
):
    chosen, of_arrays = random.Random(0), itertools.count(1)

    def fault(method, name):
        if "ocdbt" in name and next(of_arrays) % 20 == 0:
            return 503
        return chosen.choice(PASSING) if chosen.random() < SHARE else None

    url = "gs://bucket/shaken"
    with storage.failing(fault):
        finish(start(root, remote_fields, url))
        print(f"answers by fault: {dict(storage.faults)}")
        assert storage.faults.keys() >= {*PASSING}
    assert_same(url, local)
    curves = [read_curve(storage, "shaken", tmp_path), read_curve(None, local)]
    assert curves[0] == curves[1]
    left = [name for name in storage.names("shaken/") if ".tmp" in name]
    assert not [*left, *storage.names("shaken/lock.json")]
    measures = [row.get("train/checkpoint_retries", 0) for row in read_metrics(url)]
    print(f"{max(measures):.0f} repeated requests are in the metrics")
    assert max(measures) >= 1


def test_a_folder_is_removed_whichever_request_fails(storage):
    number, asked = 0, []
    while number <= len(asked):
        number += 1
        asked.clear()

        def fault(method, name, number=number, asked=asked):
            asked.append(method)
            return 503 if len(asked) == number else None

        for name in ("a", "b/c"):
            places.write_bytes(f"gs://bucket/removed/{name}", b"content")
        with storage.failing(fault):
            places.remove("gs://bucket/removed")
        assert not storage.names("removed/")
    assert number > 5


def after_a_checkpoint(fault):
    """Returns a `Storage.fault` for the requests after a checkpoint's last object."""
    saved = set()

    def later(method, name):
        if method == "POST" and re.search(rf"/checkpoints/\d+{COMMITTED}$", name):
            saved.add(name)
        return fault(method, name) if saved - {name} else None

    return later


def test_a_run_that_may_no_longer_write_ends_and_later_goes_on(
    storage, root, remote_fields, local
):
    url = "gs://bucket/forbidden"
    with storage.failing(after_a_checkpoint(lambda m, _: 403 if m != "GET" else None)):
        line = refused(start(root, remote_fields, url))
    print(line)
    assert line.startswith(f"main.py: {url}/")
    assert "cannot be written: " in line
    assert "403" in line
    assert list_steps(url) == [5]
    assert open_weights(url).step == 5  # its checksums agree
    finish(start(root, remote_fields, url, ("-c", IMPATIENT)))
    assert_same(url, local)


@pytest.mark.parametrize(
    ("status", "told"), [(403, "cannot be read"), (404, "is damaged")]
)
def test_a_shard_that_goes_amid_a_run_is_named(
    storage, root, remote_fields, status, told
):
    url, shard = f"gs://bucket/shard_{status}", "tiny-train.tfrecord-00002-of-00004"
    fault = after_a_checkpoint(lambda _, name: status if shard in name else None)
    with storage.failing(fault):
        line = refused(start(root, remote_fields, url))
    print(line)
    assert line.startswith(f"main.py: gs://bucket/data/train/{shard} {told}: ")
    assert str(status) in line
    assert open_weights(url).step >= 5


def test_a_checkpoint_without_one_of_its_objects_is_damaged(
    storage, root, fields, local, tmp_path
):
    url = storage.upload(local, "cut")
    for name in ("cut/results.json", "cut/report.html"):
        storage.delete(name)
    arrays = [n for n in storage.names("cut/checkpoints/24/state/") if "/d/" in n]
    storage.delete(max(arrays, key=lambda name: len(storage.read(name))))
    more = {"start_from": f"{url}/checkpoints/24", "total_steps": 2 * STEPS}
    line = line_of(lambda: train(fields | more, str(tmp_path / "run")))
    assert line.startswith(f"{url}/checkpoints/24 is damaged: ")
    assert line.endswith(f"; {url}/checkpoints/20 is whole")
    out, errors = start(root, fields, url).communicate(timeout=500)
    assert f"; {url}/checkpoints/20 is taken instead\n" in errors
    assert f"Continuing {url} after step 20." in out
    assert_same(url, local)
    assert storage.names("cut/checkpoints/24.damaged/")


def line_of(action):
    with pytest.raises(InputError) as error:
        action()
    assert "\n" not in str(error.value)
    print(error.value)
    return str(error.value)


# Name of a thing that a command reads or writes -> its place in the bucket.
OBJECTS = {
    "dataset": "data/train",
    "vocabulary": "vocabulary.txt",
    "start_from": "run",
    "initialize": "model",
    "evaluation": "run",
    "evaluated": "evaluated",
    "load": "model",
    "report": "run",
    "summary": "summary",
    "pictures": "pictures",
    "index": "index",
    "sweep": "run",
    "workdir": "run",
}


def use(what, url, fields, local, folder, monkeypatch):
    """Runs a command that reads or writes one thing in a bucket, the rest on a disk."""
    workdir = str(folder / "run")

    def command(module, *flags):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
        module.main()

    dataset = {**fields["input"], "datasets": {"tiny": {"directory": url}}}
    evaluation = {"run": "evaluate", "evaluators": fields["evaluators"]}
    model = folder / "model"
    match what:
        case "dataset":
            train(fields | {"input": dataset}, workdir)
        case "vocabulary":
            train(fields | {"vocabulary": url}, workdir)
        case "start_from":
            train(fields | {"start_from": url}, workdir)
        case "initialize":
            train(fields | {"initialize": {"image_tower": url}}, workdir)
        case "evaluation":
            evaluate(evaluation | {"checkpoint": url}, workdir)
        case "evaluated":
            evaluate(evaluation | {"checkpoint": str(local)}, url)
        case "load":
            align_jax.load(url)
        case "report":
            command(report, url, f"--out={folder}")
        case "summary":
            command(report, local, f"--out={url}")
        case "pictures":
            flags = (f"--model={tiny.write_model(model)}", f"--out={folder / 'out'}")
            command(embed, f"--images={url}", *flags)
        case "index":
            open_index(url)
        case "sweep":
            read_status(SweepRun("run", fields, (), url))
        case "workdir":
            train(fields, url)


@pytest.mark.parametrize("what", OBJECTS)
def test_what_is_not_there_or_not_allowed_is_one_line(
    storage, fields, local, tmp_path, monkeypatch, what
):
    for bucket, status in (("missing", None), ("bucket/none", None), ("bucket", 403)):
        absent = status is None and what == "sweep"  # its runs wait
        if absent or (bucket == "bucket/none" and what in WRITTEN):
            continue
        url, folder = f"gs://{bucket}/{OBJECTS[what]}", tmp_path / bucket
        folder.mkdir(parents=True, exist_ok=True)
        with storage.failing(lambda *_, status=status: status):
            line = line_of(
                lambda url=url, folder=folder: use(
                    what, url, fields, local, folder, monkeypatch
                )
            )
        assert url in line
        assert (status is None) or str(status) in line
        assert not (folder / "run" / "lock.json").exists()


# Name of a thing that a command writes -> what it writes first in the thing's place.
WRITTEN = {
    "evaluated": "/lock.json",
    "summary": "/summary.html",
    "workdir": "/lock.json",
}


@pytest.mark.parametrize("what", WRITTEN)
def test_a_bucket_that_may_only_be_read_is_one_line(
    storage, fields, local, tmp_path, monkeypatch, what
):
    url = f"gs://bucket/only_read/{OBJECTS[what]}"
    with storage.failing(lambda method, _: 403 if method != "GET" else None):
        line = line_of(lambda: use(what, url, fields, local, tmp_path, monkeypatch))
    assert line.startswith(f"{url}{WRITTEN[what]} cannot be written: ")
    assert "403 of the test" in line
    assert not storage.names("only_read/")


def test_a_deleted_shard_and_vocabulary_are_named(storage, root, fields, tmp_path):
    url = storage.upload(root / "data", "deleted")
    remote = json.loads(json.dumps(fields).replace(str(root / "data"), url))
    shard = "train/tiny-train.tfrecord-00001-of-00004"
    storage.delete(f"deleted/{shard}")
    line = line_of(lambda: train(remote, str(tmp_path / "run")))
    told = f"1 of 4 shards of {url}/train are missing, the first is {url}/{shard};"
    assert line.startswith(told)
    storage.delete("deleted/vocabulary.txt")
    line = line_of(lambda: train(remote, str(tmp_path / "run")))
    assert line == f"no vocabulary at {url}/vocabulary.txt; data.build writes one"
