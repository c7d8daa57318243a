import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.checkpoint import CheckpointConfig, Checkpoints
from align_jax.errors import InputError
from align_jax.sharding import replicated
from align_jax.train_step import TrainState

IDENTITY = {"model": {"width": 1.0, "sizes": {"layers": 2}}, "vocabulary_sha256": "ab"}


def make_state(mesh, value):
    state = TrainState(
        step=jnp.int32(value),
        params={"w": jnp.full((8, 2), float(value))},
        batch_stats={"mean": jnp.zeros(2)},
        optimizer=(jnp.ones(3), {"m": jnp.zeros(1)}),
    )
    return jax.device_put(state, replicated(mesh))


def test_a_state_comes_back_equal_onto_another_mesh(tmp_path, mesh_of):
    written = Checkpoints(str(tmp_path), CheckpointConfig(keep=2), IDENTITY)
    for step in (3, 6, 9):
        written.save(step, make_state(mesh_of(8), step))
    written.close()

    read = Checkpoints(str(tmp_path), CheckpointConfig(keep=2), IDENTITY)
    assert read.latest_step() == 9
    like = make_state(mesh_of(2), 0)
    state = read.restore(9, like)
    expected = make_state(mesh_of(2), 9)
    for mine, theirs in zip(
        jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.sharding == theirs.sharding
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["6", "9"]
    read.close()


def test_another_model_or_vocabulary_is_refused_by_field(tmp_path, mesh_of):
    state = make_state(mesh_of(1), 1)
    written = Checkpoints(str(tmp_path), CheckpointConfig(), IDENTITY)
    written.save(1, state)
    written.close()
    other = {"model": {"width": 2.0, "sizes": {"layers": 2}}, "vocabulary_sha256": "c"}
    read = Checkpoints(str(tmp_path), CheckpointConfig(), other)
    with pytest.raises(InputError) as error:
        read.restore(1, state)
    assert "checkpoint.model.width: 1.0 -> 2.0" in str(error.value)
    assert "checkpoint.vocabulary_sha256: 'ab' -> 'c'" in str(error.value)
    read.close()
