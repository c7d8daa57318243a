import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from align_jax.errors import InputError
from align_jax.training.checkpoint import CheckpointConfig, Checkpoints
from align_jax.training.checkpoint_part import (
    array_paths,
    read_variables,
    restore_part,
)
from align_jax.training.integrity import DamagedCheckpointError
from align_jax.training.train_state import TrainState

IDENTITY = {"model": {"width": 1.0, "stages": ((1, 3),)}}
KERNEL, MEAN = ("params", "tower", "kernel"), ("batch_stats", "tower", "mean")
SHAPES = {KERNEL: (500, 500), MEAN: (1000,)}


def variables_of(seed):
    random = np.random.default_rng(seed)  # random numbers cannot be compressed
    return {
        kind: {tower: {name: random.normal(size=shape).astype(np.float32)}}
        for (kind, tower, name), shape in SHAPES.items()
    }


@pytest.fixture(scope="module", params=[True, False], ids=["average", "no_average"])
def run(request, tmp_path_factory):
    """The workdir of a checkpoint of 4 or 3 MB, and the variables to evaluate with."""
    workdir = str(tmp_path_factory.mktemp("run"))
    own, average = variables_of(0), variables_of(1) if request.param else None
    moments = tuple(variables_of(seed)["params"] for seed in (2, 3))
    state = TrainState(step=jnp.int32(7), optimizer=moments, average=average, **own)
    checkpoints = Checkpoints(workdir, CheckpointConfig(), IDENTITY)
    checkpoints.save(7, jax.device_put(state))
    checkpoints.close()
    return workdir, average or own


def bytes_read():
    name = "/tensorstore/kvstore/file/bytes_read"
    (metric,) = tensorstore.experimental_collect_matching_metrics(name)
    return metric["values"][0]["value"]


def test_only_the_variables_are_read_and_of_two_copies_the_average(run):
    workdir, expected = run
    before = bytes_read()
    arrays = read_variables(workdir, 7, IDENTITY, SHAPES)
    stored = sum(array.nbytes for array in arrays.values())
    assert stored == 1_004_000
    assert 0.8 * stored < bytes_read() - before < 1.05 * stored
    for kind, tower, name in SHAPES:
        found = arrays[kind, tower, name]
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected[kind][tower][name])


def test_any_array_can_be_read(run):
    workdir, _ = run
    assert ("optimizer", "0", "tower", "kernel") in array_paths(workdir, 7)
    assert restore_part(workdir, 7, {("step",): ()}) == {("step",): 7}


@pytest.mark.parametrize(
    ("path", "shape", "found"),
    [(KERNEL, (500, 3), r"\(500, 500\)"), (("params", "more", "bias"), (2,), "absent")],
)
def test_an_array_of_another_shape_is_refused_by_name(run, path, shape, found):
    workdir, _ = run
    name = r"\.".join(path)
    with pytest.raises(InputError, match=rf"/7/state has .*{name}: {found}; wanted"):
        read_variables(workdir, 7, IDENTITY, {**SHAPES, path: shape})


def test_a_checkpoint_of_another_model_is_refused_by_field(run):
    other = {"model": {**IDENTITY["model"], "width": 2.0}}
    with pytest.raises(InputError, match=r"checkpoint\.model\.width: 1\.0 -> 2\.0"):
        read_variables(run[0], 7, other, SHAPES)


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_damage_of_an_array_is_noticed_where_it_is_read(run, tmp_path, how):
    workdir = str(tmp_path / "run")
    shutil.copytree(run[0], workdir)
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            content = bytearray(file.read_bytes())
            if how == "cut":
                del content[len(content) // 20 :]
            elif len(content) > 10_000:  # a file with numbers: some are hit
                for part in range(20):
                    content[part * len(content) // 20 + 500] ^= 1
            file.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"checkpoints/7 is damaged: "):
        read_variables(workdir, 7, IDENTITY, SHAPES)
