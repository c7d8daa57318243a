import json
import shutil
import sys

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

from align_jax import convert
from align_jax.errors import InputError, run_command
from align_jax.report.model_card import make_card
from align_jax.weights.source import open_weights
from tests import tiny
from tests.weights.convert_test import write_huggingface
from tests.weights.hub_stand_in import serving

RESULTS = {
    "step": 7,
    "eval/coco/i2t_recall@1": 0.25,
    "eval/coco/i2t_chance@1": 0.0625,
    "eval/coco/i2t_queries": 16.0,
    "untrained/eval/coco/i2t_recall@1": 0.125,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Returns a folder of weights that an `AlignModel` can have."""
    return write_huggingface(tmp_path_factory.mktemp("source") / "odd", "odd")


@pytest.fixture
def hub(monkeypatch):
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["convert", *flags])
    return run_command("align_jax.convert", convert.main)


def push(monkeypatch, source, *flags):
    return run(monkeypatch, f"--from={source}", "--push=org/tiny", *flags)


def test_a_model_is_uploaded_with_its_card(hub, source, tmp_path, monkeypatch):
    assert push(monkeypatch, source, "--license=apache-2.0") == 0
    files = hub.repos["org/tiny"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} < {
        *files
    }
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    for name, content in files.items():
        (downloaded / name).write_bytes(content)
    before, after = open_weights(source), open_weights(str(downloaded))
    assert before.config == after.config
    for path, array in before.variables.items():
        assert (array == after.variables[path]).all()
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["pipeline_tag"] == "zero-shot-image-classification"
    assert 'AlignModel.from_pretrained("org/tiny")' in card
    assert "converted by align_jax" in card
    assert "There are no scores of these weights." in card


def test_a_repository_with_files_is_only_replaced_if_asked(
    hub, source, monkeypatch, capsys
):
    hub.repos["org/tiny"] = {".gitattributes": b"", "old.bin": b"1"}
    assert push(monkeypatch, source) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.endswith(
        "has 1 files, such as old.bin; give --update to replace them, or another name"
    )
    assert hub.repos["org/tiny"]["old.bin"] == b"1"
    assert push(monkeypatch, source, "--update") == 0
    assert "old.bin" not in hub.repos["org/tiny"]
    assert "model.safetensors" in hub.repos["org/tiny"]


def test_an_interrupted_upload_is_one_line_and_continues(
    hub, source, monkeypatch, capsys
):
    hub.broken = True
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)
    assert push(monkeypatch, source) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "align_jax.convert: org/tiny was not uploaded to http://" in line
    assert line.endswith("; the same command continues")
    assert {*hub.repos["org/tiny"]} == {".gitattributes"}
    hub.broken = False
    assert push(monkeypatch, source) == 0
    assert "model.safetensors" in hub.repos["org/tiny"]


@pytest.mark.parametrize(
    ("token", "name", "wanted"),
    [
        ("hf_wrong", "org/tiny", r"refused org/tiny (401)"),
        ("hf_right", "other/tiny", r"refused other/tiny (403)"),
    ],
)
def test_a_token_without_rights_is_one_line(
    hub, source, monkeypatch, capsys, token, name, wanted
):
    monkeypatch.setenv("HF_TOKEN", token)
    assert run(monkeypatch, f"--from={source}", f"--push={name}") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert wanted in line
    assert f"HF_TOKEN to a token that may write to {name.split('/')[0]}" in line


def test_a_hub_that_does_not_answer_is_one_line(source, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert push(monkeypatch, source) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "align_jax.convert: org/tiny was not uploaded to http://127.0.0.1:9: "
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push=tiny"], "--push is 'tiny'; wanted ORG/NAME"),
        (["--push=org/a b"], "--push=org/a b: "),
        (["--push=org/a", "--license=Apache 2"], "the licence is 'Apache 2'"),
        (["--push=org/a", "--format=onnx"], "--push and --card are for --format="),
        (["--push=org/a", "--width=8"], "describe a model in full width"),
        (["--card"], "give either --to=DIR or --push=ORG/NAME"),
        (["--to=x", "--push=org/a"], "give either --to=DIR or --push=ORG/NAME"),
        (["--to=x", "--private"], "--private and --update are for --push"),
        (["--to=x", "--license=mit"], "--license is for --push and --card"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(
    hub, source, monkeypatch, capsys, flags, message
):
    assert run(monkeypatch, f"--from={source}", *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert hub.requests == []


def test_a_dry_run_only_writes_the_folder(hub, source, tmp_path, monkeypatch):
    folder = tmp_path / "card"
    assert run(monkeypatch, f"--from={source}", f"--to={folder}", "--card") == 0
    assert hub.requests == []
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: ")
    assert open_weights(str(folder)).kind == "dual_encoder"
    for name in ("here", "a b=%[x]"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert run(monkeypatch, f"--from={source}", "--to=.", "--card") == 0
        assert f"# {name}\n" in (tmp_path / name / "README.md").read_text()


def test_a_card_tells_of_the_run(tmp_path):
    source = tmp_path / "model"
    weights = open_weights(tiny.write_model(source))
    workdir = tmp_path / "run"
    workdir.mkdir()
    manifest = {
        "pairs_in": 1000,
        "pairs_kept": 300,
        "rules": [{"rule": "too_short", "first": 700}, {"rule": "nsfw", "first": 0}],
        "off": [{"rule": "pornographic", "reason": "no model"}],
    }
    fields = tiny.make_run(tmp_path / "data")
    (tmp_path / "data/train/manifest.json").write_text(json.dumps(manifest))
    (workdir / "config.json").write_text(json.dumps(fields))
    (workdir / "results.json").write_text(json.dumps(RESULTS))
    for place in (workdir, workdir / "checkpoints/7"):
        weights = type(weights)(**{**vars(weights), "step": 7})
        card = make_card(str(place), weights, "org/tiny")
        assert "license" not in card
        assert "4 steps of 16 pairs were planned" in card
        assert "* tiny: a corpus of 300 pairs, which rules chose among 1,000" in card
        assert "| too_short | 700 |" in card
        assert "nsfw" not in card
        assert "* No pair was dropped by these rules: pornographic (tiny)." in card
        (row,) = [x for x in card.splitlines() if x.startswith("| coco/i2t_recall@1")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:5] == ["0.250", "0.125", "0.062", "16"]
        assert "0.586" in cells  # ALIGN's
        assert '"warmup_steps": 1' in card
    earlier = type(weights)(**{**vars(weights), "step": 5})
    card = make_card(str(workdir), earlier, "org/tiny")
    assert "There are no scores of these weights." in card
    shutil.rmtree(tmp_path / "data")  # as on another machine
    assert "* tiny\n" in make_card(str(workdir), earlier, "org/tiny")


def test_a_card_is_for_a_dual_encoder(tmp_path):
    weights = open_weights(tiny.write_model(tmp_path / "model"))
    tower = type(weights)("text_tower", weights.config.text_tower, {})
    with pytest.raises(InputError, match="a card is for a dual encoder"):
        make_card("nowhere", tower, "x")
