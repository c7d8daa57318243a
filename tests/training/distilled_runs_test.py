"""Runs that learn from a teacher: plans, resumed runs, parts of a batch, sweeps."""

import dataclasses
import shutil

import jax.numpy as jnp
import pytest

from align_jax.errors import InputError
from align_jax.input.datasets import DatasetConfig
from align_jax.input.teacher import FIELDS
from align_jax.plan import measure
from align_jax.train import train
from align_jax.training.checkpoint import Checkpoints
from align_jax.training.compiled_step import make_train_step
from align_jax.training.flops import count_model_flops
from align_jax.training.train_state import abstract_state
from tests import steps, tiny
from tests.run_tiny import rows
from tests.teachers import WIDTH, write_teacher
from tests.training import phases_test

SHARES = ((0, 0.5), (2, 0.0), (3, 1.0))
LOSS = {"distillation": SHARES, "teacher_temperature": 0.1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    tiny.make_run(root)
    write_teacher(root / "teacher", DatasetConfig(str(root / "train")))
    return root


def taught(root, width=WIDTH):
    folders = {"directory": str(root / "train"), "teacher": str(root / "teacher")}
    return {"teacher_width": width, "datasets": {"tiny": folders}}


def read(root, width=WIDTH, loss=LOSS, **changes):
    return steps.read(root, input=taught(root, width), loss=loss, **changes)


@pytest.mark.pods
def test_devices_parts_and_a_resumed_run_agree(root, tmp_path, mesh_of):
    config = read(root)
    expected = steps.run(dataclasses.replace(config, microbatches=4), mesh_of(1))
    identity = config.identity(config.make_tokenizer())
    checkpoints = Checkpoints(str(tmp_path), config.checkpoint, identity)
    mesh = mesh_of(8, slices=2)
    found, _, end, _ = steps.run(config, mesh, checkpoints=checkpoints)
    steps.assert_same(found, end.own_variables, expected)
    assert [row["distillation_share"] for row in found] == [0.5, 0.5, 0, 1, 1]
    for row in found:
        plain = row["i2t_loss"] + row["t2i_loss"]
        added = row["distillation_i2t"] + row["distillation_t2i"]
        share = row["distillation_share"]
        mixed = (1 - share) * plain + share * added
        assert row["loss"] == pytest.approx(mixed, rel=1e-5)


@pytest.mark.pods
def test_a_killed_run_with_phases_ends_in_the_same_bits(root, tmp_path):
    """The size of the batch and the share of distillation change in different steps."""
    fields = phases_test.make_fields(root)
    fields["input"] |= taught(root)
    fields["loss"] |= LOSS
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(fields, str(whole))
    shutil.copytree(whole, run)
    for step in range(3, phases_test.STEPS + 1):
        shutil.rmtree(run / "checkpoints" / str(step))
    for name in ("results.json", "report.html"):
        (run / name).unlink()
    train(fields, str(run))
    assert rows(run) == rows(whole)
    shares = [row["train/distillation_share"] for row in rows(whole)]
    assert shares == [0.5, 0.5, 0, 1, 1, 1]
    ends = [phases_test.end_state(fields, path) for path in (run, whole)]
    phases_test.assert_equal(*ends)


def lowered(config, mesh):
    plan, shapes = config.make_plan(mesh), config.batch_shapes(mesh)
    return make_train_step(plan).lower(abstract_state(plan), shapes).as_text()


def test_a_share_of_0_is_the_same_program_as_without_a_teacher(root, mesh_of):
    plain = lowered(steps.read(root), mesh_of(8))
    assert lowered(read(root, loss=LOSS | {"distillation": 0}), mesh_of(8)) == plain


def test_a_plan_has_the_embeddings_and_the_work_of_the_teacher(root, mesh_of):
    plain, config = steps.read(root), read(root, loss=LOSS | {"tile": 8})
    shapes = config.batch_shapes(mesh_of(8))
    for name in FIELDS:
        assert shapes[name].shape == (config.batch_size, WIDTH)
        assert shapes[name].dtype == jnp.float32
    assert {*shapes} == {*plain.batch_shapes(mesh_of(8)), *FIELDS}
    found = [
        count_model_flops(each.make_plan(mesh_of(8)), each.batch_shapes(mesh_of(8)))
        for each in (plain, config)
    ]
    # Logits of student and teacher forward and backward, and two gradients.
    added = (8 * config.model.width + 4 * WIDTH) * config.batch_size**2
    assert found[1]["loss"] - found[0]["loss"] == pytest.approx(added, rel=1e-6)
    assert found[1]["image_tower"] == found[0]["image_tower"]


@pytest.mark.pods
def test_the_memory_of_a_plan_grows_by_the_embeddings(root, mesh_of):
    def needs(config):
        return measure(config.make_plan(mesh_of(8)), config)

    config = read(root)
    plain, more = needs(steps.read(root)), needs(config)
    embeddings = 2 * 4 * WIDTH * config.batch_size // 8
    assert more.parts["batch"] - plain.parts["batch"] == embeddings
    assert more.peak < 1.1 * plain.peak


def test_a_run_needs_the_width_and_the_temperature_of_its_teacher(root):
    with pytest.raises(InputError, match=r"teacher_width 0; wanted the embeddings"):
        steps.read(root, loss=LOSS)
    with pytest.raises(InputError, match=r"teacher_width is 0; wanted the width"):
        read(root, width=0)
    with pytest.raises(InputError, match=r"teacher_temperature None; wanted a number"):
        read(root, loss={"distillation": 0.5})
    config = read(root, loss=LOSS | {"distillation": 0.5})
    assert config.loss.distillation == ((0, 0.5),)
