import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint._src.path import deleter

from align_jax.devices.mesh import replicated
from align_jax.errors import InputError
from align_jax.runs.workdir import check_path
from align_jax.training.checkpoint import (
    CheckpointConfig,
    Checkpoints,
    list_steps,
    split_source,
)
from align_jax.training.train_state import TrainState

IDENTITY = {
    "model": {"width": 1.0, "sizes": {"layers": 2}, "stages": ((1, 3), (2, 5))},
    "vocabulary_sha256": "ab",
}


def make_state(mesh, value):
    state = TrainState(
        step=jnp.int32(value),
        params={"w": jnp.full((8, 2), float(value))},
        batch_stats={"mean": jnp.zeros(2)},
        optimizer=(jnp.ones(3), {"m": jnp.zeros(1)}),
    )
    return jax.device_put(state, replicated(mesh))


def shapes_of(state):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, state)


def test_a_state_comes_back_equal_onto_another_mesh(tmp_path, mesh_of):
    written = Checkpoints(str(tmp_path), CheckpointConfig(keep=2), IDENTITY)
    for step in (3, 6, 9):
        written.save(step, make_state(mesh_of(8), step))
    written.close()

    read = Checkpoints(str(tmp_path), CheckpointConfig(keep=2), IDENTITY)
    assert list_steps(str(tmp_path)) == [6, 9]
    state = read.restore(9, shapes_of(make_state(mesh_of(2), 0)))
    expected = make_state(mesh_of(2), 9)
    for mine, theirs in zip(
        jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.sharding == theirs.sharding
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["6", "9"]
    read.close()


def test_an_old_checkpoint_that_is_not_deleted_ends_no_run(
    tmp_path, mesh_of, monkeypatch
):
    def fail(self, step):  # as TensorFlow does if a request to a bucket fails once
        raise FileNotFoundError(f"gs://bucket/{step} doesn't exist or not a directory.")

    def save(*steps):
        checkpoints = Checkpoints(str(tmp_path), CheckpointConfig(keep=1), IDENTITY)
        for step in steps:
            checkpoints.save(step, make_state(mesh_of(1), step))
        checkpoints.close()
        return list_steps(str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(deleter.StandardCheckpointDeleter, "delete", fail)
        assert save(3, 6, 9) == [3, 6, 9]
    assert save(12) == [12]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["12"]


@pytest.mark.parametrize("name", ["Läufe für 'heute'", "100% {a} #1 ?&=%20*", "a[b"])
def test_a_folder_with_an_odd_name_holds_checkpoints(tmp_path, mesh_of, name):
    workdir = str(tmp_path / name / "run")
    check_path(workdir)
    state = make_state(mesh_of(1), 3)
    checkpoints = Checkpoints(workdir, CheckpointConfig(), IDENTITY)
    checkpoints.save(3, state)
    checkpoints.close()
    found = checkpoints.restore(3, shapes_of(state))
    np.testing.assert_array_equal(found.params["w"], state.params["w"])


@pytest.mark.parametrize("name", ["run [1]", "[seed]_run", "a**", "a\\b", "L\udce4ufe"])
def test_a_folder_whose_name_would_lose_the_arrays_is_refused(tmp_path, name):
    # Orbax and TensorStore write to these names, but cannot read what they wrote.
    with pytest.raises(InputError, match=f"because {re.escape(repr(name))} is not"):
        check_path(str(tmp_path / name / "run"))


def test_another_model_or_vocabulary_is_refused_by_field(tmp_path, mesh_of):
    state = make_state(mesh_of(1), 1)
    written = Checkpoints(str(tmp_path), CheckpointConfig(), IDENTITY)
    written.save(1, state)
    written.close()
    other = {"model": {**IDENTITY["model"], "width": 2.0}, "vocabulary_sha256": "c"}
    read = Checkpoints(str(tmp_path), CheckpointConfig(), other)
    with pytest.raises(InputError) as error:
        read.restore(1, shapes_of(state))
    assert "checkpoint.model.width: 1.0 -> 2.0" in str(error.value)
    assert "checkpoint.vocabulary_sha256: 'ab' -> 'c'" in str(error.value)
    read.close()


def test_the_newest_multiples_and_the_best_stay(tmp_path, mesh_of):
    for folder, lowest, kept in (
        ("high", False, [2, 4, 5, 6]),
        ("low", True, [4, 5, 6]),
    ):
        workdir = str(tmp_path / folder)
        config = CheckpointConfig(
            keep=2, keep_every_steps=4, best_metric="eval/a", lowest_is_best=lowest
        )
        for first in (1, 4):  # in two parts, like an interrupted run
            written = Checkpoints(workdir, config, IDENTITY)
            for step, score in [
                (1, 0.3),
                (2, 0.9),
                (3, 0.5),
                (4, 0.2),
                (5, None),
                (6, 0.4),
            ]:
                if first <= step < first + 3:
                    scores = None if score is None else {"eval/a": score, "eval/b": 0.0}
                    written.save(step, make_state(mesh_of(1), step), scores)
            written.close()
        assert list_steps(workdir) == kept


def test_a_best_metric_that_no_evaluator_gives_is_named(tmp_path):
    config = CheckpointConfig(best_metric="eval/c")
    checkpoints = Checkpoints(str(tmp_path), config, IDENTITY)
    with pytest.raises(InputError, match="'eval/c'; the scores are eval/a, eval/b"):
        checkpoints.check_scores({"eval/a": 1.0, "eval/b": 2.0})
    checkpoints.close()


def test_a_source_is_a_run_or_one_of_its_checkpoints(tmp_path, mesh_of):
    written = Checkpoints(str(tmp_path), CheckpointConfig(), IDENTITY)
    for step in (1, 2):
        written.save(step, make_state(mesh_of(1), step))
    written.close()
    run = str(tmp_path)
    assert split_source(run) == (run, 2)
    assert split_source(f"{run}/checkpoints/1/") == (run, 1)
    with pytest.raises(InputError, match=r"has no checkpoint; .* those of \[1, 2\]"):
        split_source(f"{run}/checkpoints/3")
    with pytest.raises(InputError, match="nothing has no checkpoint"):
        split_source(f"{run}/nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_state_of_another_form_is_refused(tmp_path, mesh_of):
    state = make_state(mesh_of(1), 1)
    written = Checkpoints(str(tmp_path), CheckpointConfig(), IDENTITY)
    written.save(1, state)
    written.close()
    other = state.replace(optimizer=(jnp.ones(3), {"v": jnp.zeros(1)}))
    read = Checkpoints(str(tmp_path), CheckpointConfig(), IDENTITY)
    with pytest.raises(InputError, match="holds a state of another form"):
        read.restore(1, shapes_of(other))
    read.close()


def test_a_bucket_without_its_package_is_refused_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    for ask in (list_steps, lambda run: Checkpoints(run, CheckpointConfig(), {})):
        with pytest.raises(InputError, match=r"gs://b/run/ch.*: install .*\[gs\]"):
            ask("gs://b/run")
