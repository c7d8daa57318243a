import itertools

import jax
import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.input_pipeline import train_batches
from align_jax.optimizer import make_optimizer, make_schedule
from align_jax.pretrain_config import PretrainConfig
from align_jax.sharding import global_batch
from align_jax.train_step import create_state, make_train_step
from tests import tiny

STEPS = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


def run(root, mesh, **changes):
    config = read_config(PretrainConfig, tiny.make_run(root, **changes))
    model, tokenizer = config.make_model(), config.make_tokenizer()
    schedule = make_schedule(config.optimizer, 10)
    optimizer = make_optimizer(config.optimizer, schedule)
    state = create_state(model, optimizer, config.seed, 16, 6, mesh)
    step = make_train_step(
        model, optimizer, config.loss, config.virtual_cores, config.seed, mesh
    )
    batches = train_batches(config.input, tokenizer, config.batch_size, config.seed)
    losses = []
    for batch in itertools.islice(batches, STEPS):
        state, metrics = step(state, global_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


@pytest.fixture(scope="module")
def one_device(root, mesh_of):
    return run(root, mesh_of(1))


def test_device_counts_agree_with_dropout_and_grouped_batch_norm(
    root, one_device, mesh_of
):
    losses, state = run(root, mesh_of(8))
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    for mine, theirs in zip(
        jax.tree.leaves((state.params, state.batch_stats)),
        jax.tree.leaves((one_device[1].params, one_device[1].batch_stats)),
        strict=True,
    ):
        # LAMB's steps, and so their rounding, are in proportion to a leaf's size.
        atol = max(1e-5, 1e-4 * np.abs(theirs).max())
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=atol)


def test_a_step_moves_every_parameter_and_statistic(root, one_device, mesh_of):
    config = read_config(PretrainConfig, tiny.make_run(root))
    optimizer = make_optimizer(config.optimizer, lambda _: 0.0)
    start = create_state(config.make_model(), optimizer, 0, 16, 6, mesh_of(1))
    end = one_device[1]
    assert end.step == STEPS
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)),
        (start.params, start.batch_stats),
        (end.params, end.batch_stats),
    )
    still = [
        jax.tree_util.keystr(path)
        for path, changed in jax.tree_util.tree_leaves_with_path(moved)
        if not changed
    ]
    # A key's bias shifts all of a query's scores alike: softmax does not see it, so
    # its gradient is zero up to rounding.
    assert [name for name in still if "['key']['bias']" not in name] == []


def test_the_temperature_stays_at_or_above_its_floor(one_device):
    # It starts at 1.0 and five steps of 1 % would not bring it to the floor.
    assert one_device[1].params["temperature"] >= 1.5
