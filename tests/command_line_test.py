import runpy
import sys

import pytest

from align_jax.command_line import read_command_line
from align_jax.errors import InputError
from align_jax.search.__main__ import read_flags
from align_jax.sweep.config import open_sweep

URL = "gs://bucket/folder"
COMMANDS = {
    "data.clipart": [f"--out={URL}"],
    "data.eval_sets": ["coco", "--source=.", f"--out={URL}"],
    "data.quickstart": [f"--out={URL}"],
    "data.recipes": [f"--out={URL}"],
    "data.score": ["--model=m", "--kind=parquet", "--path=p", f"--out={URL}"],
    "data.vtab": ["--source=.", f"--out={URL}"],
}


def refusal(command, flags, monkeypatch, capsys):
    """Runs a command with flags that argparse refuses; returns what it prints."""
    monkeypatch.setattr(sys, "argv", ["__main__.py", *flags])
    program = command if command in COMMANDS else f"{command}.__main__"
    monkeypatch.delitem(sys.modules, program, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(command, run_name="__main__", alter_sys=False)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"usage: python -m {command} ")
    return printed


@pytest.mark.parametrize("command", [*COMMANDS])
def test_a_url_for_a_local_folder_is_refused_with_the_reason(
    command, monkeypatch, capsys
):
    printed = refusal(command, COMMANDS[command], monkeypatch, capsys)
    assert f"{URL} is a URL; wanted a path on this machine" in printed


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("align_jax.embed", ["--out=nowhere://a/b", "--model=m", "--images=i"]),
        ("data.doctor", ["nowhere://a/b"]),
    ],
)
def test_a_url_of_an_unknown_scheme_is_refused_with_the_reason(
    command, flags, monkeypatch, capsys
):
    assert "nowhere://a/b has an unknown scheme" in refusal(
        command, flags, monkeypatch, capsys
    )


@pytest.mark.parametrize("port", [-1, 65_536, 99_999])
def test_a_port_that_does_not_exist_is_refused(port, monkeypatch):
    argv = ["align_jax.search", "serve", "index", f"--port={port}"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(InputError, match=f"--port is {port}; wanted 0 to 65535"):
        read_flags()


def test_the_home_folder_is_found_in_the_paths_of_configs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "from ml_collections import ConfigDict\n"
    text += "def get_config(name=''):\n    return ConfigDict({'run': 'evaluate'})\n"
    (tmp_path / "run.py").write_text(text)
    for flag in ("--config=~/run.py", "-config=~/run.py", "--config=~/run.py:name"):
        found = read_command_line(["main.py", flag, "--plan=here"])
        assert found.fields == {"run": "evaluate"}
    sweep = "def get_sweep():\n    return {}\n"
    (tmp_path / "sweep.py").write_text(sweep)
    with pytest.raises(InputError, match=r"sweep\.py has no runs: get_sweep"):
        open_sweep("~/sweep.py", str(tmp_path / "out"))
