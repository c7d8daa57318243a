"""Commands that read runs, models and datasets in a bucket, and the bytes of logs."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import align_jax
from align_jax import places
from align_jax.embed import __main__ as embed
from align_jax.errors import InputError
from align_jax.evaluate import evaluate
from align_jax.random_search import random_search
from align_jax.report import __main__ as report
from align_jax.runs import metric_lines, telemetry
from align_jax.runs.metric_lines import read_last_metrics, read_metrics
from align_jax.runs.pace import Pace
from align_jax.runs.telemetry import StepLog, open_writers
from align_jax.sweep import __main__ as sweep
from align_jax.sweep.config import open_sweep
from align_jax.train import train
from align_jax.weights.source import open_weights
from data.doctor import __main__ as doctor
from tests import tiny
from tests.buckets.remote_runs import read_curve
from tests.random_search_test import fake, make_search  # noqa: F401

pytestmark = pytest.mark.buckets


def log_steps(workdir, flushes):
    """Writes a log of ten steps a flush."""
    lines, writer, past = open_writers(workdir, 0)
    total = 10 * flushes
    log = StepLog(lines, writer, Pace(8, {}, past), 0, total)
    for step in range(1, total + 1):
        names = [f"measure_{i}" for i in range(12)]
        values = dict.fromkeys([*names, "loss", "temperature"], jnp.float32(step))
        log.add(step, values)
        if step % 10 == 0:
            log.flush()
    log.close()


def test_bytes_of_logs_grow_linearly_with_steps(storage, monkeypatch, tmp_path):
    for module in (metric_lines, telemetry):
        monkeypatch.setattr(module, "PART_BYTES", 1 << 14)
    sent, kinds = {}, ("metrics", "tensorboard")
    for flushes in (100, 200, 400):
        run = f"logged_{flushes}"
        log_steps(f"gs://bucket/{run}", flushes)
        sent[flushes] = {kind: storage.sent_to(f"{run}/{kind}/") for kind in kinds}
        kept = {
            kind: sum(len(storage.read(n)) for n in storage.names(f"{run}/{kind}/"))
            for kind in kinds
        }
        count = {kind: len(storage.names(f"{run}/{kind}/")) for kind in kinds}
        print(f"{10 * flushes} steps: {sent[flushes]} bytes sent, {kept=}, {count=}")
    for kind in kinds:
        for fewer in (100, 200):
            ratio = sent[2 * fewer][kind] / sent[fewer][kind]
            # A file that is sent again at each flush gives 4.
            assert ratio < 2.3, (kind, fewer, ratio)
    rows = read_metrics("gs://bucket/logged_400")
    # The last line holds the totals at the end.
    assert [row["step"] for row in rows] == [*range(4001), 4000]
    assert read_last_metrics("gs://bucket/logged_400")[-1] == rows[-1]
    points = read_curve(storage, "logged_400", tmp_path)
    assert points == [(step, step) for step in range(10, 4001, 10)]


@pytest.fixture(scope="module")
def trained(storage, tmp_path_factory):
    """(local workdir, the same run's workdir in a bucket, fields)."""
    root = tmp_path_factory.mktemp("trained")
    fields = tiny.make_run(root / "data", checkpoint={"every_steps": 2, "keep": 2})
    train(fields, str(root / "run"))
    return root, storage.upload(root / "run", "trained"), fields


def test_commands_read_a_run_in_a_bucket(trained, storage, monkeypatch, capsys):
    root, url, fields = trained
    picture = tiny.draw(tiny.NAMES[0], 50)
    models = [align_jax.load(source) for source in (url, str(root / "run"))]
    embedded = [model.encode_images([picture]) for model in models]
    np.testing.assert_array_equal(*embedded)
    converted = tiny.write_model(root / "model")
    models = [
        align_jax.load(source)
        for source in (storage.upload(root / "model", "model"), converted)
    ]
    embedded = [model.encode_images([picture]) for model in models]
    np.testing.assert_array_equal(*embedded)
    evaluation = {"run": "evaluate", "evaluators": fields["evaluators"]}
    evaluate(evaluation | {"checkpoint": url}, "gs://bucket/evaluated")
    evaluate(evaluation | {"checkpoint": str(root / "run")}, str(root / "evaluated"))
    found, wanted = (
        places.read_json(f"{folder}/results.json")
        for folder in ("gs://bucket/evaluated", root / "evaluated")
    )
    assert found == wanted
    monkeypatch.setattr(sys, "argv", ["report", url, "--out=gs://bucket/summary"])
    report.main()
    assert "gs://bucket/summary/" in capsys.readouterr().out
    assert len(storage.names("summary/")) >= 2
    more = fields | {"total_steps": 6, "evaluators": {}, "profile_steps": (5, 6)}
    for source, workdir in ((url, "gs://bucket/more"), (f"{root}/run", f"{root}/more")):
        train(more | {"start_from": source}, workdir)
    losses = [
        [row["train/loss"] for row in read_metrics(workdir) if "train/loss" in row]
        for workdir in ("gs://bucket/more", f"{root}/more")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    profile = storage.names("more/profile/plugins/profile/")
    assert [name for name in profile if name.endswith(".xplane.pb")]


def test_a_dataset_and_embeddings_in_a_bucket(trained, storage, monkeypatch, capsys):
    root, url, _ = trained
    storage.upload(root / "data", "doctor")
    told = []
    for folder in (str(root / "data" / "train"), "gs://bucket/doctor/train"):
        monkeypatch.setattr(sys, "argv", ["doctor", folder])
        code = doctor.main()
        told.append((code, capsys.readouterr().out.replace(folder, "FOLDER")))
    assert told[0] == told[1]
    table = pa.table(
        {
            "image_id": [str(i) for i in range(5)],
            "image": [*(tiny.draw(name, 20) for name in tiny.NAMES[:4]), b"none"],
        }
    )
    (root / "pictures").mkdir()
    pq.write_table(table, root / "pictures" / "a.parquet")
    pictures = storage.upload(root / "pictures", "pictures")
    for source, out in (
        (root / "pictures", root / "embedded"),
        (pictures, "gs://bucket/embedded"),
    ):
        flags = [f"--model={url}", f"--images={source}", f"--out={out}"]
        for there in (0, 1):
            monkeypatch.setattr(sys, "argv", ["embed", *flags])
            embed.main()
            assert f"of 1 files, {there} of them there" in capsys.readouterr().out
    content = (root / "embedded" / "a.parquet").read_bytes()
    assert storage.read("embedded/a.parquet") == content
    files = [name for name in storage.names("embedded/") if not name.endswith("/")]
    assert sorted(files) == ["embedded/a.parquet", "embedded/model.json"]


@pytest.mark.parametrize("sources", ["model", "towers"])
def test_a_run_starts_from_weights_in_a_bucket(trained, storage, sources):
    root, url, fields = trained
    model = root / f"weights_for_{sources}"
    tiny.write_model(model, seed=1)
    remote = storage.upload(model, model.name)
    few = fields | {"evaluators": {}}
    losses, variables = [], []
    for source, run, workdir in (
        (remote, url, f"gs://bucket/from_{sources}"),
        (str(model), str(root / "run"), str(root / f"from_{sources}")),
    ):
        named = {"model": source}
        if sources == "towers":
            named = {"image_tower": source, "text_tower": run}
        train(few | {"initialize": named}, workdir)
        rows = read_metrics(workdir)
        losses.append([row["train/loss"] for row in rows if "train/loss" in row])
        variables.append(open_weights(workdir).variables)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    for path, array in variables[1].items():
        np.testing.assert_array_equal(variables[0][path], array)


SWEEP = """
import json
from ml_collections import ConfigDict
from configs.sweeps.choose_run import choose_run

def get_sweep():
    base = ConfigDict(json.loads({fields!r}))
    return {{"first": (base, {{}}), "second": (base, {{"seed": 1}})}}

def get_config(name):
    return choose_run(get_sweep(), name)
"""


def test_a_sweep_in_a_bucket(trained, storage, tmp_path, monkeypatch, capsys):
    root, _, fields = trained
    file, folder = tmp_path / "sweep.py", "gs://bucket/sweep"
    file.write_text(SWEEP.format(fields=json.dumps(fields)))
    first, second = open_sweep(str(file), folder)
    storage.upload(root / "run", f"sweep/{first.id}")

    def tell(*flags):
        sweep.main([f"--sweep={file}", f"--workdir={folder}", *flags])
        return capsys.readouterr().out.splitlines()

    _, done, waiting, counts = tell("--launcher=status")
    assert done.split()[:5] == [first.id, "done", "4", "/", "4"]
    assert waiting.split()[:2] == [second.id, "waiting"]
    assert counts == "1 done, 1 waiting"
    assert tell("--launcher=print") == [second.command]
    assert f"--workdir={folder}/{second.id}" in second.command
    (launch,) = tell("--launcher=skypilot", "--jobs=gs://bucket/jobs")
    assert launch.endswith(storage.names("jobs/second")[0].removeprefix("jobs/"))
    with pytest.raises(InputError, match=f"--workdir is {folder}; the launcher 'loc"):
        tell("--launcher=local")
    train(dict(second.fields), second.workdir)
    assert tell("--launcher=status")[-1] == "2 done"
    monkeypatch.setattr(sys, "argv", ["report", folder, f"--out={folder}/summary"])
    report.main()
    page = storage.read("sweep/summary/summary.md").decode()
    assert all(f"| {run.id} | done |" in page for run in (first, second))


def test_a_search_in_a_bucket(storage, tmp_path, fake):  # noqa: F811
    ran, scores = fake
    folder = "gs://bucket/search"
    fields = make_search(tmp_path, trials=2, groups={})
    fields |= {part: {"one": fields[part]["one"]} for part in ("tasks", "final")}
    for name in ("trial_00", "trial_01", "seed_0", "seed_1", "seed_2"):
        scores[f"one/{name}"] = 0.5
    random_search(fields, folder)
    assert [name for name, _ in ran][:2] == ["one/trial_00", "one/trial_01"]
    assert places.read_json(f"{folder}/results.json")["eval/one/top1"] == 0.5
    assert not [name for name in storage.names("search/") if "checkpoints" in name]
