"""Tests of checkpoints whose files were damaged after they were written."""

import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.devices.mesh import replicated
from align_jax.errors import InputError, NonFiniteError
from align_jax.training.checkpoint import (
    CheckpointConfig,
    Checkpoints,
    list_steps,
    read_whole,
    set_aside_later,
)
from align_jax.training.integrity import DamagedCheckpointError
from tests.training.checkpoint_test import IDENTITY, make_state, shapes_of

CONFIG = CheckpointConfig(best_metric="eval/a")
DAMAGES = ("cut", "emptied", "deleted", *(f"flipped {i}" for i in range(8)))


def random_state(mesh, seed=0):
    """Makes a state whose arrays no compressor can shrink."""
    random = np.random.default_rng(seed)
    state = jax.tree.map(
        lambda x: x + random.standard_normal(x.shape).astype(x.dtype),
        make_state(mesh, 7).replace(params={"w": jnp.zeros((64, 64))}),
    )
    return jax.device_put(state, replicated(mesh))


def save(workdir, states):
    checkpoints = Checkpoints(str(workdir), CONFIG, IDENTITY)
    for step, state in states.items():
        checkpoints.save(step, state, {"eval/a": 0.5})
    checkpoints.close()


def restore(workdir, step, abstract, identity=IDENTITY):
    checkpoints = Checkpoints(str(workdir), CONFIG, identity)
    try:
        return checkpoints.restore(step, abstract)
    finally:
        checkpoints.close()


def damage(path, how, random):
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how.startswith("flipped"):
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if how == "cut" else 0])


def largest(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, mesh_of):
    """A run with a checkpoint of step 7, and its state."""
    workdir, state = tmp_path_factory.mktemp("saved"), random_state(mesh_of(1))
    save(workdir, {7: state})
    return workdir, state


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_of_any_file_is_named_or_changes_nothing(saved, tmp_path, how):
    whole, state = saved
    random, noticed, messages = np.random.default_rng(DAMAGES.index(how)), [], []
    files = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]
    files = [path for path in files if (whole / path).stat().st_size]
    assert len(files) > 10
    for number, path in enumerate(sorted(files)):
        workdir = tmp_path / str(number)
        shutil.copytree(whole, workdir)
        damage(workdir / path, how, random)
        try:
            found = restore(workdir, 7, shapes_of(state))
        except DamagedCheckpointError as error:
            noticed.append(path)
            messages.append(str(error))
        else:
            jax.tree.map(np.testing.assert_array_equal, found, state)
    assert all("checkpoints/7 is damaged: " in message for message in messages)
    names = {path.parent.name for path in noticed}
    assert {"integrity", "identity"} <= names
    assert "d" in names or how.startswith("flipped")


def test_a_flipped_bit_of_an_array_names_the_array(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    path = largest(tmp_path / "run")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(
        DamagedCheckpointError, match=r"bytes were changed in params\.w$"
    ):
        restore(tmp_path / "run", 7, shapes_of(saved[1]))


@pytest.mark.parametrize("how", [*DAMAGES[:2], "changed"])
def test_a_damaged_score_is_named_and_spares_its_checkpoint(saved, tmp_path, how):
    shutil.copytree(saved[0], tmp_path / "run")
    score = tmp_path / "run" / "checkpoints" / "7" / "metrics" / "metrics"
    if how == "changed":
        score.write_text('{"eval/a": 0.7}')
    else:
        damage(score, how, None)
    checkpoints = Checkpoints(str(tmp_path / "run"), CONFIG, IDENTITY)
    with pytest.raises(
        DamagedCheckpointError, match=r"checkpoints/7 is damaged: .*; remove /"
    ):
        checkpoints.open()
    checkpoints.restore(7, shapes_of(saved[1]))
    score.unlink()
    checkpoints.open()
    checkpoints.close()


def make_older(workdir):
    """Takes the record out of a checkpoint, as earlier versions wrote them."""
    for folder in (workdir / "checkpoints").iterdir():
        shutil.rmtree(folder / "integrity")
        path = folder / "_CHECKPOINT_METADATA"
        described = json.loads(path.read_text())
        del described["item_handlers"]["integrity"]
        path.write_text(json.dumps(described))


def test_a_checkpoint_of_an_earlier_version_is_read(saved, tmp_path):
    run, state = tmp_path / "run", saved[1]
    shutil.copytree(saved[0], run)
    make_older(run)
    found = restore(run, 7, shapes_of(state))
    jax.tree.map(np.testing.assert_array_equal, found, state)
    other = state.replace(optimizer=(jnp.ones(3), {"v": jnp.zeros(1)}))
    with pytest.raises(InputError, match="holds a state of another form"):
        restore(run, 7, shapes_of(other))
    path = largest(run)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedCheckpointError, match="checkpoints/7 is damaged"):
        restore(run, 7, shapes_of(state))


def test_an_earlier_version_with_infinity_in_a_moment_is_refused(
    tmp_path, mesh_of, monkeypatch
):
    state = random_state(mesh_of(1))
    state = state.replace(optimizer=(jnp.full(3, jnp.inf), state.optimizer[1]))
    measure = "align_jax.training.integrity.measure"
    with monkeypatch.context() as patched:
        patched.setattr(measure, lambda tree: ({}, []))
        save(tmp_path, {7: state})
    make_older(tmp_path)
    with pytest.raises(
        DamagedCheckpointError, match=r"NaN or infinity is in optimizer\.0"
    ):
        restore(tmp_path, 7, shapes_of(state))


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, mesh_of):
    state = random_state(mesh_of(1))
    checkpoints = Checkpoints(str(tmp_path), CheckpointConfig(keep=1), IDENTITY)
    assert checkpoints.describe_newest() == "no checkpoint is written yet"
    checkpoints.save(1, state)
    bad = state.replace(params={"w": state.params["w"].at[3, 5].set(jnp.nan)})
    with pytest.raises(NonFiniteError, match=r"in params\.w after step 2") as error:
        checkpoints.save(2, bad)
    assert error.value.step == 2
    expected = "the last checkpoint, of step 1, is whole"
    assert checkpoints.describe_newest() == expected
    checkpoints.close()
    assert list_steps(str(tmp_path)) == [1]


@pytest.fixture
def run(tmp_path, mesh_of):
    """A run with checkpoints of steps 3, 6 and 9, the last of them damaged."""
    states = {step: random_state(mesh_of(1), step) for step in (3, 6, 9)}
    save(tmp_path, states)
    largest(tmp_path / "checkpoints" / "9").unlink()
    abstract = shapes_of(states[3])
    return tmp_path, lambda workdir, step: (step, restore(workdir, step, abstract))


def test_the_newest_whole_checkpoint_is_read_with_one_warning(run, capfd):
    workdir, read = run
    assert read_whole(str(workdir), read)[0] == 6
    lines = [x for x in capfd.readouterr().err.splitlines() if "warning" in x]
    (line,) = lines
    folder = workdir / "checkpoints"
    assert line.startswith(f"warning: {folder}/9 is damaged: ")
    assert line.endswith(f"; {folder}/6 is taken instead")
    assert read_whole(f"{workdir}/checkpoints/3", read)[0] == 3
    assert "warning" not in capfd.readouterr().err


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(run):
    workdir, read = run
    whole = re.escape(f"{workdir}/checkpoints/6 is whole")
    with pytest.raises(InputError, match=rf"checkpoints/9 is damaged: .*; {whole}"):
        read_whole(f"{workdir}/checkpoints/9", read)
    for step in (3, 6):
        largest(workdir / "checkpoints" / str(step)).unlink()
    for source in (workdir, workdir / "checkpoints" / "9"):
        with pytest.raises(InputError, match="has no checkpoint that is whole"):
            read_whole(str(source), read)


def test_a_run_that_goes_back_writes_the_damaged_steps_again(run, mesh_of):
    workdir, read = run
    set_aside_later(str(workdir), 6)
    assert list_steps(str(workdir)) == [3, 6]
    assert (pathlib.Path(workdir) / "checkpoints" / "9.damaged").is_dir()
    save(workdir, {9: random_state(mesh_of(1), 9)})
    assert read_whole(str(workdir), read)[0] == 9
    set_aside_later(str(workdir), 6)  # the earlier folder of that name is replaced
    assert list_steps(str(workdir)) == [3, 6]


def test_storage_that_refuses_to_read_is_not_called_damage(run, monkeypatch):
    workdir, read = run

    def refuse(*args, **kwargs):
        raise ValueError("PERMISSION_DENIED: Error opening d/1")

    handler = "orbax.checkpoint.PyTreeCheckpointHandler.restore"
    monkeypatch.setattr(handler, refuse)
    with pytest.raises(
        InputError, match="6 cannot be read: PERMISSION_DENIED"
    ) as error:
        read(str(workdir), 6)
    assert not isinstance(error.value, DamagedCheckpointError)
