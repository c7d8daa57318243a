import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.devices import mesh
from align_jax.devices.collectives import count_collectives
from align_jax.devices.compiling import compile_fast
from align_jax.devices.mesh import batch_split, replicated
from align_jax.errors import InputError
from align_jax.training import compiled_step
from align_jax.training.compiled_step import compile_steps
from align_jax.training.train_state import (
    compile_create,
    compile_draws,
    create_state,
)
from tests import steps


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


def with_towers(config, image, text):
    """Returns the config with some of its towers' fields changed."""
    model = dataclasses.replace(
        config.model,
        image_tower=dataclasses.replace(config.model.image_tower, **image),
        text_tower=dataclasses.replace(config.model.text_tower, **text),
    )
    return dataclasses.replace(config, model=model)


def moved_leaves(start, end):
    """Returns, for each variable's name, whether it differs between two states."""
    differs = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), start.own_variables, end.own_variables
    )
    leaves = jax.tree_util.tree_leaves_with_path(differs)
    return {"/".join(k.key for k in path): moved for path, moved in leaves}


@pytest.fixture(scope="module")
def one_device(root, mesh_of):
    return steps.run(steps.read(root), mesh_of(1))


@pytest.fixture(scope="module")
def eight_devices(root, mesh_of):
    return steps.run(steps.read(root), mesh_of(8))


def test_devices_agree_with_dropout_and_grouped_batch_norm(one_device, eight_devices):
    rows, _, end, _ = eight_devices
    steps.assert_same(rows, end.own_variables, one_device)


def test_microbatches_agree_with_the_whole(root, one_device, mesh_of):
    config = steps.read(root, microbatches=4)
    rows, _, end, _ = steps.run(config, mesh_of(2))
    steps.assert_same(rows, end.own_variables, one_device)


@pytest.mark.parametrize(
    ("fsdp", "slices", "tower"),
    [
        pytest.param(4, 1, {"rematerialise": "blocks"}, marks=pytest.mark.pods),
        pytest.param(2, 2, {}, marks=pytest.mark.pods),
        pytest.param(2, 1, {"rematerialise": "stages"}, marks=pytest.mark.pods),
        pytest.param(8, 1, {"scan": True}, marks=pytest.mark.pods),
    ],
)
def test_a_split_state_agrees_with_a_whole_one(
    root, one_device, mesh_of, monkeypatch, fsdp, slices, tower
):
    monkeypatch.setattr(mesh, "SMALL", 2**10)  # so that even a tiny block is split
    config, expected = steps.read(root, microbatches=1), one_device
    if fsdp == 8:  # several equal blocks, so that there is something to scan
        config = with_towers(config, {"stages": ((3, 3, 2, 6, 64),)}, {})
        expected = steps.run(config, mesh_of(1))
    text = {"rematerialise": fsdp == 4, "scan": fsdp == 8}
    config = dataclasses.replace(with_towers(config, tower, text), fsdp=fsdp)
    devices = mesh_of(8, fsdp, slices)
    rows, _, end, program = steps.run(config, devices)
    steps.assert_same(rows, end.own_variables, expected)
    for name in ("image_tower", "text_tower"):
        sizes = [leaf.size for leaf in jax.tree.leaves(end.params[name])]
        assert min(sizes) < mesh.SMALL <= max(sizes)
    state = create_state(config.make_plan(devices))
    for leaf in jax.tree.leaves((state.params, state.optimizer)):
        held = math.prod(leaf.addressable_shards[0].data.shape)
        assert held == leaf.size // (fsdp if leaf.size >= mesh.SMALL else 1)
    assert "all-gather" in program


def test_a_step_moves_every_parameter_and_statistic(one_device):
    _, start, end, _ = one_device
    assert end.step == steps.COUNT
    still = [name for name, moved in moved_leaves(start, end).items() if not moved]
    # A key's bias shifts all scores of a query equally, which softmax ignores. The
    # gradient of the bias is therefore zero up to rounding.
    assert [name for name in still if "key/bias" not in name] == []


def test_both_programs_of_a_step_are_of_one_trace_and_take_the_same_step(
    root, mesh_of, monkeypatch
):
    traced, own = [], compiled_step.train_step
    monkeypatch.setattr(
        compiled_step,
        "train_step",
        lambda *arrays, **fields: (
            traced.append(fields["norms"]) or own(*arrays, **fields)
        ),
    )
    few = steps.read(root, optimizer={"kind": "sgd"})  # operations to compile
    config = with_towers(few, {"stages": ((1, 3, 2, 6, 64),)}, {})
    plan, devices = config.make_plan(mesh_of(1)), mesh_of(1)
    shapes = config.batch_shapes(devices, config.batch_phases[0])
    programs = compile_steps(plan, shapes, (False, True))
    assert traced == [True]
    random = np.random.default_rng(0)
    batch = {  # the tiny vocabulary has a few tokens
        name: random.integers(1, 5, x.shape).astype(x.dtype)
        for name, x in shapes.items()
    }
    ends = {
        norms: program(create_state(plan), jax.device_put(batch, batch_split(devices)))
        for norms, program in programs.items()
    }
    (plain, some), (measured, more) = ends[False], ends[True]
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, plain, measured)
    norms = {name for name in more if name.endswith("_norm")}
    assert len(norms) == 6
    assert {*more} - norms == {*some}
    assert np.isfinite(some["loss"])
    for name, value in some.items():
        close(more[name], value)


def test_the_first_state_is_the_one_that_a_single_program_makes(root, mesh_of):
    optimizer = {"kind": "adamw", "average_decay": 0.9}
    config = with_towers(
        steps.read(root, optimizer=optimizer), {"stages": ((1, 3, 2, 6, 64),)}, {}
    )
    plan = config.make_plan(mesh_of(2))
    found, whole = create_state(plan), compile_create(plan)()
    assert jax.tree.structure(found) == jax.tree.structure(whole)
    pairs = [*zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True)]
    for mine, theirs in pairs:
        np.testing.assert_array_equal(mine, theirs, strict=True)
        assert mine.sharding == theirs.sharding
    # A step may use each array's memory again, so no two arrays share theirs.
    held = [x.addressable_data(0).unsafe_buffer_pointer() for x, _ in pairs]
    assert len({*held}) == len(held)
    drawn = len(compile_draws(plan)())
    assert 0 < drawn < len(pairs) / 2


def test_a_step_tells_the_rate_that_it_took(root, one_device, mesh_of):
    schedule = steps.read(root).make_plan(mesh_of(1)).schedule
    rates = [row["learning_rate"] for row in one_device[0]]
    assert rates == pytest.approx([float(schedule(i)) for i in range(steps.COUNT)])
    assert rates[0] == 0.0 < rates[1]


def test_the_compiled_step_never_holds_all_logits(root, eight_devices):
    config, text = steps.read(root), eight_devices[3]
    n, width = config.batch_size, config.model.image_tower.output_width
    shapes = [
        [int(size) for size in shape.split(",")]
        for shape in re.findall(r"[a-z]\w*\[([\d,]+)\]", text)
    ]
    assert [n, width] in shapes  # no other axis in the model has length N = 56
    assert not [shape for shape in shapes if shape.count(n) > 1]
    gathers = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)
    sizes = [math.prod(map(int, shape.split(","))) for shape in gathers]
    assert max(sizes) == n * width


def test_the_image_towers_forward_pass_has_no_collective(root, mesh_of):
    config, devices = steps.read(root), mesh_of(8)
    plan, batch = config.make_plan(devices), batch_split(devices)
    images = np.zeros((config.batch_size, 32, 32, 3), np.uint8)

    def forward(variables, images):
        return plan.model.apply(
            variables,
            images,
            jnp.arange(config.virtual_cores),
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
            method="encode_images",
        )

    program = jax.jit(
        forward, in_shardings=(replicated(devices), batch), out_shardings=batch
    )
    compiled = program.lower(create_state(plan).own_variables, images).compile()
    assert count_collectives(compiled.as_text()) == {}


def test_a_frozen_tower_stays_an_average_follows_and_the_sigmoid_loss_trains(
    root, mesh_of
):
    config = steps.read(
        root,
        model={"temperature_form": "log", "logit_bias_init": -2.0},
        loss={"kind": "sigmoid"},
        optimizer={
            "frozen": ("^image_tower/",),
            "average_decay": 0.5,
            "warmup_steps": 0,
        },
    )
    (row,), start, end, _ = steps.run(config, mesh_of(2), count=1)
    assert row["logit_bias"] == -2.0
    assert row["temperature"] == pytest.approx(1.0)
    assert all(np.isfinite(list(row.values())))
    for name, moved in moved_leaves(start, end).items():
        assert moved == (not name.startswith("params/image_tower/")), name
    # In the first step, the weight of the old average is 1 / 10.
    jax.tree.map(
        lambda average, a, b: np.testing.assert_allclose(
            average, 0.1 * a + 0.9 * b, rtol=1e-6, atol=1e-7
        ),
        end.variables,
        start.own_variables,
        end.own_variables,
    )
    assert end.variables is end.average


def test_microbatches_hold_whole_batch_norm_groups(root, mesh_of):
    for microbatches, message in (
        (3, "microbatches is 3, which does not divide a device's 4 virtual"),
        (4, "holds 7 pairs at a time, which cuts .* groups of 14"),
    ):
        config = steps.read(root, microbatches=microbatches, batch_norm_cores=2)
        with pytest.raises(InputError, match=message):
            config.make_plan(mesh_of(2))
    with pytest.raises(InputError, match="8, which does not divide over 3 devices"):
        steps.read(root).make_plan(mesh_of(3))


def test_an_option_that_the_compiler_does_not_know_is_left_out(mesh_of):
    kept = {"xla_backend_optimization_level": 1}
    options = {"cpu": {"xla_cpu_no_such_option": "1", "xla_cpu_nor_this": True} | kept}
    tried, lowered = [], jax.jit(lambda x: 2 * x).lower(3.0)
    compile_one = lowered.compile

    def compile(options):
        tried.append(dict(options))
        return compile_one(options)

    lowered.compile = compile
    double = compile_fast(lowered, mesh_of(1), options)
    assert double(3.0) == 6.0
    assert tried[-1] == kept


def test_sums_on_cpus_are_left_to_xla(mesh_of):
    def total(x):
        return (x * jax.nn.sigmoid(x)).sum((1, 2))

    x = jax.ShapeDtypeStruct((128, 32, 32, 16), jnp.float32)
    lowered = jax.jit(total).lower(x)
    assert "ynn_fusion" not in compile_fast(lowered, mesh_of(1)).as_text()
