import dataclasses
import math
import re

import jax
import pytest

from align_jax.devices.collectives import Collectives
from align_jax.devices.known import Device
from align_jax.devices.mesh import SMALL, make_mesh
from align_jax.errors import InputError
from align_jax.models.towers import IMAGE_TOWERS
from align_jax.models.transformer import TransformerConfig
from align_jax.plan import (
    GIB,
    Needs,
    find_devices,
    measure,
    memory_limit,
    plan,
)
from align_jax.training.compiled_step import compile_step
from tests import steps, tiny


def test_a_step_is_planned_for_the_devices_at_hand(tmp_path, mesh_of):
    config = steps.read(tmp_path)
    whole = measure(config.make_plan(mesh_of(8)), config)
    config = dataclasses.replace(config, fsdp=8)
    parts = measure(config.make_plan(mesh_of(8, 8)), config)
    sizes = [math.prod(shape) for shape in steps.parameter_shapes(config.model)]
    assert whole.parts["parameters"] == 4 * sum(sizes)
    held = [size // 8 if size >= SMALL else size for size in sizes]
    assert parts.parts["parameters"] == 4 * sum(held) < 4 * sum(sizes)
    moments = parts.parts["optimizer"] - 2 * parts.parts["parameters"]
    assert 0 <= moments < 64  # bytes of the count of steps
    assert whole.traffic > 0
    # The loss gathers the texts' embeddings and the log-sum-exps, and nothing else.
    width = 8 * 4 * 7 * config.model.text_tower.hidden
    gathers = whole.collectives["all-gather"]
    assert gathers.size < 4 * width
    assert parts.collectives["all-gather"].operations > gathers.operations


def test_planning_here_prints_what_it_found(tmp_path, capsys, monkeypatch):
    def need(step, config, phase):
        found = {
            "all-gather": Collectives(1, 2**22, 2**21),
            "all-reduce": Collectives(3, 2**20),
        }
        return Needs({"activations": GIB}, 1e9, found, 1.0)

    monkeypatch.setattr("align_jax.plan.measure", need)
    assert plan(tiny.make_run(tmp_path), "here")
    printed = capsys.readouterr().out
    assert "8 x cpu" in printed
    assert "peak" in printed
    assert "all-gather                 4.0 MiB, 2.0 MiB from other slices\n" in printed
    assert "all-reduce                 1.0 MiB\n" in printed
    assert "GFLOP a pair" in printed
    assert "loss" in printed
    assert "the device's memory is not known" in printed


def test_a_plan_has_the_work_and_the_needs_of_every_phase(
    tmp_path, capsys, monkeypatch
):
    sides = []

    def need(step, config, phase):  # replaces the compiler, which takes long
        sides.append(config.batch_shapes(step.mesh, phase)["images"].shape)
        pairs = step.virtual_cores * step.pairs_per_core
        return Needs({"activations": pairs * GIB / 20}, 0.0, {}, 0.0)

    device = Device(memory_gib=1, peak_flops=1.0)
    kind = jax.devices()[0].device_kind
    monkeypatch.setattr("align_jax.plan.DEVICES", {kind: device})
    monkeypatch.setattr("align_jax.plan.measure", need)
    small = (0, {"image_size": 8, "max_tokens": 4})
    phases = (small, (2, {}), (3, {"virtual_cores": 16}))
    assert not plan(tiny.make_run(tmp_path, phases=phases), "here")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(("from", "here"))] == [
        "from step 0: pictures of 8 x 8, 4 tokens",
        "here: 8 x cpu, 16 pairs a step, 2 a device, microbatches=1, fsdp=1,"
        " rematerialise=none",
        "from step 2: pictures of 16 x 16, 6 tokens",
        "here: 8 x cpu, 16 pairs a step, 2 a device, microbatches=1, fsdp=1,"
        " rematerialise=none",
        "from step 3: pictures of 16 x 16, 6 tokens",
        "here: 8 x cpu, 32 pairs a step, 4 a device, microbatches=1, fsdp=1,"
        " rematerialise=none",
    ]
    assert [line for line in lines if line.endswith(("fits", "not fit"))] == [
        *["0.80 GiB of 1: fits"] * 2,
        "1.60 GiB of 1: does not fit",
    ]
    work = [float(line.split()[0]) for line in lines if "GFLOP a pair" in line]
    assert work[0] < work[1]
    assert sides == [(16, 8, 8, 3), (16, 16, 16, 3), (32, 16, 16, 3)]
    bad = tiny.make_run(tmp_path, phases=(small, (3, {"virtual_cores": 12})))
    with pytest.raises(InputError, match="12, which does not divide over 8 devices"):
        plan(bad, "here")
    assert "from step" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("virtual_cores", "parts"), [(8, []), (16, ["microbatches=2: 1.00 GiB of 1: fits"])]
)
def test_alternatives_are_compiled_and_told(
    tmp_path, capsys, monkeypatch, virtual_cores, parts
):
    def need(step, config, phase):  # replaces the compiler, which takes long
        if config.model.image_tower.rematerialise == "stages":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out\n of memory")
        return Needs({"activations": 2 * GIB / step.microbatches}, 0.0, {}, 0.0)

    device = Device(memory_gib=1, peak_flops=1.0)
    kind = jax.devices()[0].device_kind
    monkeypatch.setattr("align_jax.plan.DEVICES", {kind: device})
    monkeypatch.setattr("align_jax.plan.measure", need)
    fields = tiny.make_run(tmp_path, virtual_cores=virtual_cores, batch_norm_cores=1)
    assert not plan(fields, "here", alternatives=True)
    told = capsys.readouterr().out.splitlines()
    tower = "model.image_tower.rematerialise"
    assert told[told.index("2.00 GiB of 1: does not fit") + 1 :] == [
        *parts,  # only if they divide a device's virtual cores
        f"{tower}=pointwise: 2.00 GiB of 1: does not fit",
        f"{tower}=blocks: 2.00 GiB of 1: does not fit",
        f"{tower}=stages: does not fit: RESOURCE_EXHAUSTED: out of memory",
    ]


class Card:
    device_kind = "NVIDIA H200"

    def memory_stats(self):
        return {"bytes_limit": 105 * GIB}


def test_a_device_at_hand_has_what_jax_takes_of_it():
    assert memory_limit(Card(), here=True) == 105 * GIB
    assert memory_limit(Card(), here=False) == 141 * GIB


@pytest.mark.tpu
@pytest.mark.parametrize(
    "target", ["v5e:2x4", "v3:2x2", "v4:2x2x2", "v6e:2x4", "v5p:2x2x2", "tpu7x:2x2x1"]
)
def test_a_tiny_step_is_planned_for_a_slice(tmp_path, capsys, target):
    assert plan(tiny.make_run(tmp_path), target)
    printed = capsys.readouterr().out
    assert "8 x TPU" in printed
    assert "not known" not in printed
    assert "slices" not in printed


@pytest.mark.tpu
@pytest.mark.parametrize("kind", ["vit", "convnext", "efficientnet_v2"])
def test_a_step_of_other_towers_is_planned_for_a_slice(tmp_path, capsys, kind):
    tower = IMAGE_TOWERS[kind][0].smallest()
    model = {
        "image_tower": dataclasses.asdict(tower),
        "text_tower": dataclasses.asdict(TransformerConfig.smallest()),
        "dtype": "bfloat16",
    }
    assert plan(tiny.make_run(tmp_path, model=model, fsdp=2), "v5e:2x4")
    printed = capsys.readouterr().out
    assert "8 x TPU" in printed
    assert "not known" not in printed


@pytest.mark.tpu
def test_a_tiny_step_is_planned_for_two_slices(tmp_path, capsys):
    assert plan(tiny.make_run(tmp_path, fsdp=2), "2xv5e:2x2")
    assert "from other slices" in capsys.readouterr().out
    devices = find_devices("2xv5e:2x2")
    mesh = make_mesh(2, devices)
    assert mesh.devices.shape == (2, 2, 2)
    for number, part in enumerate(mesh.devices):
        assert {device.slice_index for device in part.flat} == {number}
    with pytest.raises(InputError, match="does not divide 4 devices of a slice"):
        make_mesh(8, devices)


@pytest.mark.tpu
def test_a_state_is_split_over_fewer_chips_than_an_axis_of_the_slice():
    mesh = make_mesh(8, find_devices("v4:4x4x4"))
    assert mesh.devices.shape == (1, 8, 8)


@pytest.mark.tpu
def test_the_step_of_a_slice_gathers_embeddings_and_holds_no_square_of_them(tmp_path):
    tile, pairs = 64, 8 * 48
    config = steps.read(tmp_path, pairs_per_core=48, loss={"tile": tile})
    step = config.make_plan(make_mesh(1, find_devices("v5e:2x4")))
    program = compile_step(step, config.batch_shapes(step.mesh)).as_text()
    gathered = re.findall(r"= (.*?) all-gather(?:-start)?\(", program)
    shapes = {shape for found in gathered for shape in re.findall(r"\[(.*?)\]", found)}
    width = config.model.image_tower.output_width
    assert f"{pairs},{width}" in shapes
    assert shapes <= {f"{pairs},{width}", f"{pairs}", f"48,{width}", "48"}
    assert f"[48,{tile}]" in program  # one device's tile of the logits
    for rows in (48, pairs):
        assert f"[{rows},{pairs}]" not in program


@pytest.mark.tpu
def test_an_unknown_slice_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--plan=v9:2x2: .* knows no such slice"):
        plan(tiny.make_run(tmp_path), "v9:2x2")
