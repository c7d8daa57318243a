import jax

from align_jax.places import read_json
from align_jax.runs import provenance


def test_a_run_s_folder_tells_what_it_ran_with(tmp_path):
    provenance.write_provenance(str(tmp_path))
    found = read_json(str(tmp_path / provenance.PROVENANCE_FILE))
    assert found["jax"] == jax.__version__
    assert "8 x cpu (cpu)" in found["devices"]


def test_revision_is_git_s_where_there_is_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_revision() is None
    (tmp_path / ".git").mkdir()
    assert provenance.git_revision() is None
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\necho 0123abc-dirty\n")
    git.chmod(0o755)
    assert provenance.git_revision() == "0123abc-dirty"
