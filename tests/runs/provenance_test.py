import datetime
import json

import jax
import pytest

from align_jax.errors import InputError
from align_jax.runs import provenance


def test_a_run_s_folder_tells_what_every_start_ran_with(tmp_path):
    assert provenance.read_starts(str(tmp_path)) == []
    path = tmp_path / provenance.PROVENANCE_FILE
    earlier = {"git revision": "0123abc", "devices": "4 x H200 (gpu)"}
    path.write_text(json.dumps(earlier))  # of a version that kept the last start only
    for _ in range(2):
        provenance.add_provenance(str(tmp_path))
    first, second, third = provenance.read_starts(str(tmp_path))
    assert first == earlier
    assert second["jax"] == third["jax"] == jax.__version__
    assert "8 x cpu (cpu)" in third["devices"]
    assert datetime.datetime.fromisoformat(third["started"]).tzinfo is not None


def test_starts_are_counted_by_devices_and_revision():
    starts = [
        {"devices": devices, "git revision": revision, "started": str(i)}
        for i, (devices, revision) in enumerate(["ab", "cd", "ab"])
    ]
    assert provenance.count_starts(starts) == {"starts": "3: 2 on a at b, 1 on c at d"}
    assert provenance.count_starts(starts[:1]) == {}


@pytest.mark.parametrize("found", ['{"devices"', "3", '["a"]'])
def test_a_damaged_file_of_starts_is_named(tmp_path, found):
    (tmp_path / provenance.PROVENANCE_FILE).write_text(found)
    with pytest.raises(InputError, match=provenance.PROVENANCE_FILE):
        provenance.add_provenance(str(tmp_path))


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
