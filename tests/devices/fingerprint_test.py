import json
import pathlib

import jax
import pytest

from align_jax.devices import fingerprint
from align_jax.devices.fingerprint import describe_compiler, hash_sources


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two files, which are the only traced code."""
    folder = tmp_path / "traced_for_a_test"
    (folder / "room").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "room" / "loss.py").write_text("SCALE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fingerprint, "TRACED", (folder.name,))
    return folder


def test_a_change_of_any_source_file_changes_the_hash(package):
    first = hash_sources()
    assert hash_sources() == first
    loss = package / "room" / "loss.py"
    loss.write_text("SCALE = 2\n")
    assert hash_sources() != first
    loss.write_text("SCALE = 1\n")
    (package / "notes.txt").write_text("no code")
    assert hash_sources() == first
    loss.rename(package / "room" / "losses.py")
    assert hash_sources() != first


def test_the_traced_code_is_read_from_all_four_packages(monkeypatch):
    read = []
    monkeypatch.setattr(
        pathlib.Path, "read_bytes", lambda path: read.append(path.as_posix()) or b""
    )
    hash_sources()
    for name in (
        "align_jax/training/train_step.py",
        "flax/linen/linear.py",
        "jax/_src/lax/lax.py",
        "optax/_src/alias.py",
    ):
        assert any(path.endswith(f"/{name}") for path in read), name


def test_the_description_is_json_and_names_every_device(package, mesh_of):
    found = describe_compiler(mesh_of(8, 2))
    assert json.loads(json.dumps(found)) == found
    assert found["mesh"] == {"slice": 1, "data": 4, "fsdp": 2}
    assert [device[1] for device in found["devices"]] == [*range(8)]
    assert f"jaxlib=={jax.lib.__version__}" in found["packages"]
    assert found == describe_compiler(mesh_of(8, 2))
