"""Options of a training step: the same on 1 and 8 devices and after a resume."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.devices import mesh
from align_jax.devices.mesh import state_sharding
from align_jax.models.parameters import flatten, variable_shapes
from align_jax.models.transformer import TransformerConfig
from align_jax.models.vit import VitConfig
from align_jax.plan import measure
from align_jax.training.checkpoint import Checkpoints
from align_jax.training.checkpoint_part import read_variables
from align_jax.training.flops import count_model_flops
from align_jax.training.muon import is_matrix
from align_jax.training.train_state import abstract_state
from align_jax.weights.initialize import place_arrays
from tests import steps

OPTIONS = {
    "muon": {
        "optimizer": {
            "kind": "muon",
            "decay": "rsqrt",
            "cooldown_steps": 3,
            "frozen": ("^temperature$",),
        }
    },
    "schedule_free": {
        "optimizer": {
            "kind": "schedule_free_adamw",
            "decay": "constant",
            "frozen": ("^text_tower/word_embeddings/",),
        }
    },
}
OPTIMIZERS = [*OPTIONS]
WIDTHS = (80, 24, 8)
OPTIONS["transformers"] = {
    "model": {
        "image_tower": dataclasses.asdict(VitConfig.smallest()),
        "text_tower": dataclasses.asdict(TransformerConfig.smallest()),
    }
}
OPTIONS["nested"] = {"loss": {"widths": WIDTHS, "width_weights": (1.0, 0.5, 2.0)}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def small(monkeypatch):
    """Splits arrays of the tiny model, which stay whole otherwise."""
    monkeypatch.setattr(mesh, "SMALL", 2**10)


@pytest.mark.pods
@pytest.mark.parametrize("name", OPTIONS)
def test_devices_and_a_resumed_run_agree(root, tmp_path, mesh_of, small, name):
    config = steps.read(root, **OPTIONS[name])
    expected = steps.run(dataclasses.replace(config, microbatches=4), mesh_of(1))
    config = dataclasses.replace(config, fsdp=4)
    identity = config.identity(config.make_tokenizer())
    checkpoints = Checkpoints(str(tmp_path), config.checkpoint, identity)
    rows, _, end, _ = steps.run(config, mesh_of(8, 4), checkpoints=checkpoints)
    steps.assert_same(rows, end.own_variables, expected)
    # The run and a reader of its checkpoint evaluate the same parameters.
    shapes = variable_shapes(config.model)
    found = read_variables(str(tmp_path), steps.COUNT, identity, shapes)
    wanted = flatten(end.variables)
    for path, array in found.items():
        np.testing.assert_array_equal(array, wanted[path], str(path))


def take_steps(plan, devices):
    """Returns the state after three steps of the optimizer with drawn gradients."""

    def drawn(path, leaf, seed):
        name = jax.tree_util.keystr(path)
        random = np.random.default_rng([seed, *name.encode()])
        return random.normal(size=leaf.shape).astype(np.float32)

    def place(tree):
        return jax.tree.map(
            lambda x: jax.device_put(x, state_sharding(x.shape, devices)), tree
        )

    shapes = abstract_state(plan).params
    params, *gradients = (
        place(
            jax.tree_util.tree_map_with_path(lambda p, x, s=s: drawn(p, x, s), shapes)
        )
        for s in range(4)
    )
    state = place(plan.transformation.init(params))
    split = jax.tree.map(lambda x: x.sharding, (params, state))
    update = jax.jit(
        lambda gradient, state, params: plan.transformation.update(
            gradient, state, params
        ),
        out_shardings=split,
    )
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


@pytest.mark.pods
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_split_state_takes_the_steps_of_a_whole_one(root, mesh_of, small, name):
    config = steps.read(root, **OPTIONS[name])
    whole = take_steps(config.make_plan(mesh_of(1)), mesh_of(1))
    config, devices = dataclasses.replace(config, fsdp=4), mesh_of(8, 4)
    split = take_steps(config.make_plan(devices), devices)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        split,
        whole,
    )
    arrays = jax.tree.leaves(split[1])
    assert max(x.size for x in arrays) >= mesh.SMALL
    for x in arrays:
        held = x.addressable_shards[0].data.size
        assert held == x.size // (4 if x.size >= mesh.SMALL else 1)


def test_a_schedule_free_checkpoint_is_read_as_its_average(root, tmp_path, mesh_of):
    config = steps.read(root, **OPTIONS["schedule_free"])
    plan = config.make_plan(mesh_of(1))
    params, optimizer = take_steps(plan, mesh_of(1))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_state(plan))
    state = zeros.replace(params=params, optimizer=optimizer)
    identity = config.identity(config.make_tokenizer())
    checkpoints = Checkpoints(str(tmp_path), config.checkpoint, identity)
    checkpoints.save(3, state)
    checkpoints.close()
    shapes = variable_shapes(config.model)
    found = read_variables(str(tmp_path), 3, identity, shapes)
    evaluated, trained = flatten(state.variables), flatten(state.own_variables)
    for path, array in found.items():
        np.testing.assert_array_equal(array, evaluated[path], str(path))
        averaged = path[0] == "params" and "word_embeddings" not in path
        assert np.array_equal(array, trained[path]) != averaged, path


class Compiled:
    """A compiled step of which nothing is known but its memory."""

    argument_size_in_bytes = output_size_in_bytes = alias_size_in_bytes = 0
    temp_size_in_bytes = generated_code_size_in_bytes = 0

    def memory_analysis(self):
        return self

    def cost_analysis(self):
        return {}

    def as_text(self):
        return ""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plan_knows_the_optimizers_memory(root, mesh_of, small, monkeypatch, name):
    """A matrix has one moment under Muon; all else has two arrays, or z and one."""
    monkeypatch.setattr("align_jax.plan.compile_step", lambda *_, **__: Compiled())
    changes = OPTIONS[name]["optimizer"] | {"frozen": ("^image_tower/",)}
    config = steps.read(root, fsdp=8, optimizer=changes)
    expected = 0
    for path, shape in variable_shapes(config.model).items():
        if path[0] == "params" and path[1] != "image_tower":
            x = jax.ShapeDtypeStruct(shape, np.float32)
            matrix = name == "muon" and is_matrix("/".join(path[1:]), x)
            size = math.prod(shape)
            held = size // 8 if size >= mesh.SMALL and size % 8 == 0 else size
            expected += held * (1 if matrix else 2)
    needs = measure(config.make_plan(mesh_of(8, 8)), config)
    assert 0 <= needs.parts["optimizer"] - 4 * expected < 64  # counts and numbers


def test_a_plan_counts_the_work_of_every_width(root, mesh_of):
    def count(**changes):
        config, devices = steps.read(root, **changes), mesh_of(8)
        shapes = config.batch_shapes(devices)
        return count_model_flops(config.make_plan(devices), shapes)

    plain, nested = count(), count(**OPTIONS["nested"])
    assert nested["loss"] == pytest.approx(plain["loss"] * sum(WIDTHS) / WIDTHS[0])
    assert nested["image_tower"] == plain["image_tower"]


def test_weights_are_the_start_of_all_points_of_a_schedule_free_run(root, mesh_of):
    plan = steps.read(root, **OPTIONS["schedule_free"]).make_plan(mesh_of(1))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_state(plan))
    # As if a state was created: b1 is the only number that must not be 0.
    state = zeros.replace(optimizer=plan.transformation.init(zeros.params))
    random = np.random.default_rng(0)
    arrays = {
        path: random.normal(size=shape).astype(np.float32)
        for path, shape in variable_shapes(plan.model.config).items()
    }
    placed = place_arrays(jax.device_put(state, mesh_of(1).devices.flat[0]), arrays)
    for path, array in flatten(placed.variables).items():
        np.testing.assert_allclose(array, arrays[path], rtol=1e-5, atol=1e-6)
