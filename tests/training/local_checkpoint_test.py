import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from align_jax import train as training
from align_jax.devices.mesh import FSDP_AXIS, make_mesh, state_sharding
from align_jax.errors import InputError
from align_jax.runs.telemetry import StepLog
from align_jax.train import train
from align_jax.training.checkpoint import CheckpointConfig
from align_jax.training.local_checkpoint import LocalCheckpoints
from tests import tiny
from tests.run_tiny import rows

IDENTITY = {"model": {"width": 1.0}}


class State(struct.PyTreeNode):
    step: jax.Array
    params: dict


def make_state(fsdp, value):
    """A state of which `large` is split, with numbers whose bits are easily lost."""
    mesh = make_mesh(fsdp)
    arrays = {
        "large": np.random.default_rng(value).normal(size=(256, 128)),
        "half": np.array([value, -0.0, 1e-30]),
        "scalar": np.float32(-0.0),
    }
    types = {"large": np.float32, "half": jnp.bfloat16, "scalar": np.float32}
    return State(
        jax.device_put(np.int32(value), state_sharding((), mesh)),
        {
            name: jax.device_put(x.astype(types[name]), state_sharding(x.shape, mesh))
            for name, x in arrays.items()
        },
    )


def shapes_of(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.fixture
def opened(tmp_path):
    """A function that opens the local checkpoints of a run."""

    def make(identity=IDENTITY, started="1999-12-31T23:59:59", folder="local"):
        workdir = tmp_path / "run"
        workdir.mkdir(exist_ok=True)
        (workdir / "provenance.json").write_text(json.dumps([{"started": started}]))
        config = CheckpointConfig(
            local_folder=str(tmp_path / folder), local_every_steps=3
        )
        return LocalCheckpoints(str(workdir), config, identity)

    return make


def save(local, fsdp, steps):
    for step in steps:
        local.save(step, make_state(fsdp, step))
    local.close()


@pytest.mark.parametrize("fsdp", [1, 4])
def test_a_state_comes_back_bit_for_bit(opened, tmp_path, fsdp):
    save(opened(), fsdp, (3, 6, 9))
    expected = make_state(fsdp, 9)
    assert expected.params["large"].sharding == NamedSharding(
        make_mesh(fsdp), PartitionSpec(FSDP_AXIS) if fsdp > 1 else PartitionSpec()
    )
    step, state = opened().restore(shapes_of(expected), 5)
    assert step == 9
    for mine, theirs in zip(
        jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
    ):
        assert (mine.dtype, mine.sharding) == (theirs.dtype, theirs.sharding)
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()
    kept = sorted(path.name for path in (tmp_path / "local").glob("*/*"))
    assert kept == ["6.0-of-1.npz", "9.0-of-1.npz"]
    assert opened().restore(shapes_of(expected), 9) is None


def test_the_next_step_may_overwrite_what_is_being_written(opened):
    local, state = opened(), make_state(1, 3)
    bits = np.array(state.params["large"])
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    local.save(3, state)
    overwrite(state)
    local.close()
    _, found = opened().restore(shapes_of(make_state(1, 3)), 0)
    np.testing.assert_array_equal(found.params["large"], bits)


@pytest.mark.parametrize("cut", [0, 1000, -30, "flip", "encrypt"])
def test_a_damaged_file_leads_to_the_step_before(opened, tmp_path, capsys, cut):
    save(opened(), 1, (3, 6))
    (path,) = (tmp_path / "local").glob("*/6.*")
    content = bytearray(path.read_bytes())
    if cut == "flip":
        content[len(content) // 2] ^= 1
    elif cut == "encrypt":  # the flag that the directory at the end has for a member
        content[content.index(b"PK\1\2") + 8] ^= 1
    path.write_bytes(content[:cut] if isinstance(cut, int) else content)
    step, _ = opened().restore(shapes_of(make_state(1, 0)), 0)
    assert step == 3
    assert f"warning: {path} is damaged: " in capsys.readouterr().err


def test_files_of_another_run_are_not_read(opened):
    save(opened(), 4, (3,))
    shapes = shapes_of(make_state(4, 0))
    assert opened().restore(shapes, 0) is not None
    assert opened({"model": {"width": 2.0}}).restore(shapes, 0) is None
    assert opened(started="2000-01-01T00:00:00").restore(shapes, 0) is None
    assert opened(folder="other").restore(shapes, 0) is None
    assert opened().restore(shapes_of(make_state(2, 0)), 0) is None  # other parts


def test_files_of_steps_that_run_again_make_room_for_new_ones(opened, tmp_path):
    save(opened(), 1, (6, 27, 30))
    (folder,) = (tmp_path / "local").iterdir()
    (folder / "30.0-of-1.npz").rename(folder / "30.1-of-2.npz")
    local = opened()
    local.remove_later(20)
    save(local, 1, (21, 24))
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["21.0-of-1.npz", "24.0-of-1.npz"]
    step, _ = opened().restore(shapes_of(make_state(1, 0)), 20)
    assert step == 24


def test_a_failure_to_write_is_one_warning(opened, tmp_path, capsys):
    (tmp_path / "local").write_text("a file and no folder")
    save(opened(), 1, (3,))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the local checkpoint of step 3 is not written")


def test_a_local_folder_is_a_path():
    with pytest.raises(InputError, match="gs://bucket/local"):
        CheckpointConfig(local_folder="gs://bucket/local")


@pytest.mark.faults
def test_a_killed_run_goes_on_from_its_local_checkpoint(tmp_path, monkeypatch, capsys):
    fields = tiny.make_run(tmp_path, total_steps=6, evaluators={})
    fields["checkpoint"] = {"every_steps": 100}
    train(fields, str(tmp_path / "whole"))
    local = tmp_path / "local"
    fields["checkpoint"] |= {"local_folder": str(local), "local_every_steps": 2}

    class Killed(StepLog):
        def add(self, step, metrics):
            if step == 6:
                raise KeyboardInterrupt
            super().add(step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(training, "StepLog", Killed)
        with pytest.raises(KeyboardInterrupt):
            train(fields, str(tmp_path / "run"))
    assert len([*local.glob("*/*")]) == 2
    train(fields, str(tmp_path / "run"))
    assert "after step 4, from local files" in capsys.readouterr().out
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert [*local.iterdir()] == []
