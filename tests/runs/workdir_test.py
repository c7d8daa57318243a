import pytest

from align_jax.errors import InputError
from align_jax.runs import workdir

CONFIG = {"seed": 0, "input": {"sizes": (1, 2)}}


def test_a_folder_belongs_to_its_config(tmp_path):
    folder = str(tmp_path / "run")
    workdir.check(folder, CONFIG)
    assert not (tmp_path / "run").exists()
    workdir.claim(folder, CONFIG)
    workdir.check(folder, CONFIG)  # tuples come back as lists
    with pytest.raises(InputError, match="another config .*config.seed: 0 -> 1"):
        workdir.check(folder, {**CONFIG, "seed": 1})
    assert not workdir.is_finished(folder)


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not empty and holds no config.json"):
        workdir.check(str(tmp_path), CONFIG)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_broken_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is not valid JSON"):
        workdir.check(str(tmp_path), CONFIG)


def test_a_folder_whose_run_was_killed_at_its_start_is_free(tmp_path):
    for left in ("config.json.tmp", "config.json.01ab23cd.tmp"):
        (tmp_path / left).write_text('{"se')
    workdir.check(str(tmp_path), CONFIG)
    workdir.claim(str(tmp_path), CONFIG)
    with pytest.raises(InputError, match="another config"):
        workdir.check(str(tmp_path), {"seed": 1})
