"""Runs a few training steps on tiny data, and compares the results of two runs."""

import itertools

import jax
import numpy as np
import pytest
from jax.experimental.multihost_utils import process_allgather

from align_jax.config import read_config
from align_jax.devices.compiling import compile_fast
from align_jax.devices.mesh import global_batch
from align_jax.input.pipeline import TrainBatches
from align_jax.input.training_data import open_training
from align_jax.models.parameters import variable_shapes
from align_jax.training.compiled_step import make_train_step
from align_jax.training.pretrain_config import PretrainConfig
from align_jax.training.train_state import abstract_state, create_state
from tests import tiny

COUNT = 5
AGREEING = ("loss", "i2t_loss", "t2i_loss", "temperature")


def read(root, **changes):
    """Makes a config whose BatchNorm groups are large enough to be well conditioned."""
    fields = tiny.make_run(root, pairs_per_core=7, batch_norm_cores=1)
    fields["input"]["preprocess"] = {"resize": 36, "image_size": 32, "flip": False}
    fields["optimizer"]["learning_rate"] = 1e-3
    for name, value in changes.items():
        whole = fields.get(name, {}) | value if isinstance(value, dict) else value
        fields[name] = whole
    return read_config(PretrainConfig, fields)


def parameter_shapes(model):
    """Lists the shapes of a dual encoder's parameters."""
    shapes = variable_shapes(model)
    return [shape for path, shape in shapes.items() if path[0] == "params"]


def fetch(state):
    """Returns a state's arrays, also those that other processes hold parts of."""
    if jax.process_count() == 1:
        return jax.device_get(state)
    return process_allgather(state, tiled=True)


def run(config, mesh, count=COUNT, checkpoints=None):
    """Returns metrics of the steps, states before and after, and the compiled text.

    With `checkpoints`, the state is saved and restored before the last two steps, which
    are computed twice and must end in the same bits; the last state is saved as well.
    """
    plan, tokenizer = config.make_plan(mesh), config.make_tokenizer()
    state = create_state(plan)
    start = fetch(state)
    hosts = jax.process_count()
    tail = []
    data = open_training(config.input, config.batch_phases, hosts)
    batches = TrainBatches(
        data,
        tokenizer,
        config.seed,
        start_step=0,
        process_index=jax.process_index(),
        process_count=hosts,
    )
    rows, program = [], None
    for step, batch in enumerate(itertools.islice(batches, count)):
        batch = global_batch(batch, mesh)
        if checkpoints is not None and step == count - 2:
            checkpoints.save(step, state)
            checkpoints.wait()
        if step >= count - 2:
            tail.append(batch)
        if program is None:
            lowered = make_train_step(plan).lower(state, batch)
            program = compile_fast(lowered, mesh)
        state, metrics = program(state, batch)
        rows.append({name: float(value) for name, value in metrics.items()})
    end = fetch(state)
    if checkpoints is not None:
        state = checkpoints.restore(count - 2, abstract_state(plan))
        for batch in tail:
            state, _ = program(state, batch)
        jax.tree.map(np.testing.assert_array_equal, fetch(state), end)
        checkpoints.save(count, state)
        checkpoints.close()
    return rows, start, end, program.as_text()


def assert_same(rows, variables, expected):
    """Asserts that losses, parameters and statistics equal those returned by `run`."""
    expected_rows, _, end, _ = expected
    for mine, theirs in zip(rows, expected_rows, strict=True):
        for name in AGREEING:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), name
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        variables,
        end.own_variables,
    )
