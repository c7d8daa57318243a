"""A run's folder is whole in itself: what it holds, and what reads it elsewhere."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import align_jax
from align_jax.errors import InputError
from align_jax.evaluation.evaluators import EVALUATORS
from align_jax.input.tokenizer import open_tokenizer
from align_jax.input.wordpiece import WordPiece
from align_jax.runs.provenance import read_starts
from align_jax.texts import NFKC_CASEFOLD, NONE
from align_jax.train import train
from align_jax.weights.folder import digest
from align_jax.weights.source import open_weights
from align_jax.weights.starts import describe_start
from align_jax.weights.vocabulary import check_copy, find_vocabulary, keep_copy
from tests import tiny
from tests.evaluation.new_evaluator_test import Length

TEXTS = [f"{name} {i}" for i in range(2) for name in tiny.NAMES]
PICTURES = [tiny.draw(name, 40) for name in tiny.NAMES]
# Loads a run from the present folder and writes its embeddings.
LOADS = f"""
import sys
import numpy as np
import align_jax
from tests import tiny

model = align_jax.load("the run", batch_size=8)
pictures = [tiny.draw(name, 40) for name in tiny.NAMES]
np.savez(sys.argv[1], images=model.encode_images(pictures),
         texts=model.encode_texts({TEXTS}))
"""


class Undrawn(Length):
    """An evaluator whose part of the report fails."""

    def examples(self, embedder):
        return {"texts": self.texts}


def fields_of(root, **changes):
    """The config of two steps in microbatches, which 3 devices could not train."""
    mine = {"kind": "undrawn", "text": "red left"}
    fields = tiny.make_run(
        root, total_steps=2, microbatches=2, evaluators={"mine": mine}
    )
    fields |= {"virtual_cores": 16, "batch_norm_cores": 1}
    # The optimizer with the fewest operations to compile.
    fields["optimizer"] = {"kind": "sgd", "warmup_steps": 0, "average_decay": 0.5}
    return fields | changes


@pytest.fixture(scope="module")
def undrawn():
    EVALUATORS["undrawn"] = Undrawn
    yield
    del EVALUATORS["undrawn"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def run(data, undrawn):
    """The workdir of a finished run."""
    workdir = data / "run"
    train(fields_of(data), str(workdir))
    return workdir


@pytest.fixture(scope="module")
def embeddings(run):
    model = align_jax.load(str(run), batch_size=8)
    return model.encode_images(PICTURES), model.encode_texts(TEXTS)


def copy(run, folder):
    """Copies a run without what only some tests need."""
    ignored = shutil.ignore_patterns("tensorboard", "report.html")
    return pathlib.Path(shutil.copytree(run, folder, ignore=ignored))


def change_config(workdir, change):
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.pods
def test_a_copy_without_its_corpus_embeds_alike_on_any_number_of_devices(
    run, embeddings, tmp_path, monkeypatch
):
    copy(run, tmp_path / "the run")
    change_config(
        tmp_path / "the run",
        lambda config: config.update(vocabulary="gone/vocabulary.txt"),
    )
    path = os.pathsep.join([str(pathlib.Path(__file__).parents[2]), *sys.path])
    workers = {}
    for devices in (1, 3):
        count = os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}")
        command = [sys.executable, "-c", LOADS, f"{devices}.npz"]
        workers[devices] = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"XLA_FLAGS": count, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
    monkeypatch.chdir(tmp_path)
    model = align_jax.load("the run", batch_size=8)  # on 8 devices
    np.testing.assert_array_equal(model.encode_images(PICTURES), embeddings[0])
    np.testing.assert_array_equal(model.encode_texts(TEXTS), embeddings[1])
    for devices, worker in workers.items():
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
        found = np.load(tmp_path / f"{devices}.npz")
        for array, expected in zip(found.values(), embeddings, strict=True):
            assert array.shape == expected.shape
            np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6)


def test_a_folder_of_an_earlier_version_opens_and_goes_on(data, run, tmp_path, capsys):
    old = copy(run, tmp_path / "old")
    (old / "vocabulary.txt").unlink()
    (old / "config.json").write_text(json.dumps(fields_of(data)))
    last = read_starts(str(run))[-1]
    (old / "provenance.json").write_text(json.dumps(last))
    assert digest(open_weights(str(old))) == digest(open_weights(str(run)))
    (old / "results.json").unlink()
    train(fields_of(data), str(old))
    assert "Continuing" in capsys.readouterr().out
    names = ("vocabulary.txt", "config.json", "results.json")
    for name in names:
        assert (old / name).read_bytes() == (run / name).read_bytes()
    first, second = read_starts(str(old))
    assert first == last
    assert second["started"] >= first["started"]


def test_every_field_is_written_and_a_default_that_changed_is_named(
    data, run, tmp_path
):
    config = json.loads((run / "config.json").read_text())
    assert config["optimizer"]["b1"] == 0.9
    assert config["model"]["image_tower"]["kind"] == "efficientnet"
    assert config["input"]["datasets"]["tiny"]["text_feature"] == "text"
    assert config["evaluators"]["mine"]["power"] == 1
    explicit = fields_of(data)
    explicit["model"]["image_tower"]["kind"] = "efficientnet"
    train(explicit, str(run))  # the same run
    changed = copy(run, tmp_path / "changed")
    change_config(changed, lambda config: config["optimizer"].update(b1=0.8))
    change_config(changed, lambda config: config["evaluators"]["mine"].update(power=2))
    with pytest.raises(InputError) as error:
        train(fields_of(data), str(changed))
    assert "config.optimizer.b1: 0.8 -> 0.9" in str(error.value)
    assert "config.evaluators.mine.power: 2 -> 1" in str(error.value)
    change_config(changed, lambda config: config["optimizer"].update(b7=0))
    with pytest.raises(InputError, match=r"config\.optimizer has no field 'b7'"):
        train(fields_of(data), str(changed))
    assert open_weights(str(changed)).step == 2  # other fields are not read


@pytest.mark.parametrize("part", ["", "/", "/checkpoints/2", "/checkpoints/2/"])
def test_a_config_that_starts_from_a_run_has_the_run_s_tokenizer(run, part):
    assert describe_start(f"{run}{part}").vocabulary == f"{run}/vocabulary.txt"


def test_a_run_goes_on_with_its_own_vocabulary_only(data, run, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*tiny.WORDS[:-1], "middle"]) + "\n")
    workdir = copy(run, tmp_path / "copied")
    (workdir / "results.json").unlink()
    change_config(workdir, lambda config: config.update(vocabulary=str(other)))
    changed = fields_of(data, vocabulary=str(other))
    with pytest.raises(InputError, match=r"checkpoint\.vocabulary_sha256: "):
        train(changed, str(workdir))
    shutil.rmtree(workdir / "checkpoints")  # killed before the first one
    with pytest.raises(InputError, match=r"not the vocabulary that this run began wi"):
        train(changed, str(workdir))
    assert (workdir / "vocabulary.txt").read_text().split() == tiny.WORDS


@pytest.mark.parametrize(
    ("token", "normalisation", "file"),
    [
        ("\u2028", None, "vocabulary.txt"),
        ("a\n", None, "tokenizer.json"),
        ("\rb", None, "tokenizer.json"),
        ("ab", NONE, "tokenizer.json"),
        ("ß", NFKC_CASEFOLD, "tokenizer.json"),
    ],
)
def test_a_copy_keeps_any_token_and_the_normalisation(
    tmp_path, token, normalisation, file
):
    tokenizer = WordPiece([*tiny.WORDS, token], 6, normalisation=normalisation)
    assert find_vocabulary(str(tmp_path), "named") == "named"
    keep_copy(str(tmp_path), tokenizer)
    check_copy(str(tmp_path), tokenizer)
    found = find_vocabulary(str(tmp_path), "named")
    assert found == str(tmp_path / file)
    copy = open_tokenizer(found, 6)
    assert (copy.tokens, copy.digest) == (tokenizer.tokens, tokenizer.digest)
    other = NFKC_CASEFOLD if tokenizer.normalisation == NONE else NONE
    changed = WordPiece([*tiny.WORDS, token], 6, normalisation=other)
    with pytest.raises(InputError, match=f"normalisation {other}"):
        check_copy(str(tmp_path), changed)


def test_a_page_that_fails_is_one_warning_and_is_drawn_when_it_can_be(
    data, run, tmp_path, capsys, monkeypatch
):
    workdir = copy(run, tmp_path / "copied")
    results = (workdir / "results.json").read_bytes()
    for removed in ((), ("results.json",)):
        for name in removed:
            (workdir / name).unlink()
        train(fields_of(data), str(workdir))
        printed = capsys.readouterr()
        (line,) = [x for x in printed.err.splitlines() if "warning" in x]
        assert f"warning: {workdir}/report.html is not written: AttributeErr" in line
        assert "run_folder_test.py, line" in line
        assert "eval/mine/length" in printed.out
        assert (workdir / "results.json").read_bytes() == results
        assert not (workdir / "report.html").exists()
    monkeypatch.setitem(EVALUATORS, "undrawn", Length)
    train(fields_of(data), str(workdir))
    assert "warning" not in capsys.readouterr().err
    assert "eval/mine/length" in (workdir / "report.html").read_text()
