"""The page on scale, and the count of traffic that it stands on."""

import argparse
import dataclasses
import itertools
import math
import pathlib

import jax
import pytest

from align_jax.command_line import read_command_line
from align_jax.devices.mesh import make_mesh
from align_jax.models.efficientnet import expand_stages
from align_jax.training.flops import count_model_flops
from align_jax.training.train_state import abstract_state
from align_jax.training.training_runs import read_run_config
from benchmarks import scale, step_bounds
from benchmarks.traffic import count_traffic, with_padding

ROOT = pathlib.Path(__file__).parents[1]

# One B7-sized model in round numbers, on a chip in round numbers.
MODEL = step_bounds.Model(
    title="round",
    config="none",
    flops=100e9,
    traffic=2e9,
    parameters=200_000_000,
    gradients=500_000_000,
    width=640,
    fsdp=1,
)
CHIP = step_bounds.Chip("TPU v5 lite", 800e9, 200e9, 3.125e9, 256)


def test_the_page_is_what_the_command_prints():
    assert (ROOT / "docs/scale.md").read_text() == scale.write_page({})


def test_a_step_on_two_slices_is_bounded_as_by_hand():
    """256 chips, 64 pairs each, in two slices of 128."""
    bounds = step_bounds.bound_step(MODEL, CHIP, 256, 2)
    assert bounds.arithmetic == pytest.approx(64 * 100e9 / 197e12)
    # 128 GB of traffic, and 28 bytes a parameter for the optimizer.
    assert bounds.memory == pytest.approx((128e9 + 5.6e9) / 800e9)
    # 16,384 x 640 x 4 = 41.94304 MB of embeddings. Each array is sent twice, without
    # the part of the chip itself.
    sent = 2 * (0.5e9 + 41_943_040) * 127 / 128
    assert bounds.links == pytest.approx(sent / 200e9)
    # A chip sends half of its 1/128 of both arrays, twice.
    crossing = 2 * (0.5e9 + 41_943_040) / 128 / 2
    assert bounds.network == pytest.approx(crossing / 3.125e9)
    # 4 chips a host: 256 pairs, on 112 processors.
    assert bounds.input == pytest.approx(256 * step_bounds.PROCESSOR_SECONDS / 112)
    assert bounds.limit == ("memory", bounds.memory)


def test_a_split_state_is_gathered_twice_and_its_gradients_summed_into_parts():
    whole = step_bounds.bound_step(MODEL, CHIP, 16, 1)
    model = dataclasses.replace(MODEL, fsdp=8)
    split = step_bounds.bound_step(model, CHIP, 16, 1)
    gathered = 2 * 2 * 200e6 * 7 / 8  # bfloat16, forward and backward
    gradients = 0.5e9 * 7 / 8 + 2 * 0.5e9 / 8 / 2
    embeddings = 2 * 41_943_040 * 15 / 16
    assert split.links == pytest.approx((gathered + gradients + embeddings) / 200e9)
    assert whole.memory - split.memory == pytest.approx(28 * 200e6 * 7 / 8 / 800e9)


def test_one_chip_sends_nothing_to_another_slice():
    assert step_bounds.bound_step(MODEL, CHIP, 4, 1).network == 0


def test_prices_are_those_of_the_named_chips():
    prices = scale.read_prices("v5e:2,v6e:0.5")
    titles, _, *rows = scale.table_of_steps(step_bounds.MODELS[0], prices)
    assert titles.endswith("| chip-hours | price |")
    assert {row.split("|")[1].split()[-1] for row in rows} == {"v5e", "v6e"}
    for row in rows:
        *_, hours, price, _ = row.replace(",", "").split("|")
        factor = 2 if "v5e" in row else 0.5
        assert float(price) == pytest.approx(factor * float(hours), rel=1e-3, abs=1)
    with pytest.raises(argparse.ArgumentTypeError, match="unknown chips"):
        scale.read_prices("v9:1")


PROGRAM = """
HloModule step

%fused (p0: f32[12,8], p1: s32[], p2: f32[8]) -> f32[8] {
  %p0 = f32[12,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[8]{0} parameter(2)
  %slice = f32[1,8]{1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8}
  %row = f32[8]{0} bitcast(%slice)
  ROOT %sum = f32[8]{0} add(%row, %p2)
}

%kept (q0: f32[12,8], q1: f32[8], q2: s32[]) -> f32[12,8] {
  %q0 = f32[12,8]{1,0} parameter(0)
  %q1 = f32[8]{0} parameter(1)
  %q2 = s32[] parameter(2)
  %one = f32[1,8]{1,0} bitcast(%q1)
  ROOT %new = f32[12,8]{1,0} dynamic-update-slice(%q0, %one, %q2)
}

%turn (state: (s32[], f32[8], f32[12,8])) -> (s32[], f32[8], f32[12,8]) {
  %state = (s32[], f32[8]{0:T(128)S(1)}, f32[12,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8]{0:T(128)S(1)} get-tuple-element(%state), index=1
  %all = f32[12,8]{1,0:T(8,128)} get-tuple-element(%state), index=2
  %y = f32[8]{0:T(128)S(1)} fusion(%all, %i, %x), kind=kLoop, calls=%fused
  %out = f32[12,8]{1,0:T(8,128)} fusion(%all, %y, %i), kind=kLoop, calls=%kept
  ROOT %next = (s32[], f32[8]{0}, f32[12,8]{1,0}) tuple(%i, %y, %out)
}

%more (state.1: (s32[], f32[8], f32[12,8])) -> pred[] {
  %state.1 = (s32[], f32[8]{0}, f32[12,8]{1,0}) parameter(0)
  %end = s32[] constant(12)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %yes = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (a: (s32[], f32[8], f32[12,8]), b: bf16[4,4]) -> bf16[4,4] {
  %a = (s32[], f32[8]{0}, f32[12,8]{1,0}) parameter(0)
  %b = bf16[4,4]{1,0:T(8,128)(2,1)} parameter(1)
  %loop = (s32[], f32[8]{0}, f32[12,8]{1,0}) while(%a), condition=%more, body=%turn
  %near = (bf16[4,4]{1,0:S(1)}, bf16[4,4]{1,0}, u32[]) copy-start(%b)
  %c = bf16[4,4]{1,0:S(1)} copy-done(%near)
  ROOT %d = bf16[4,4]{1,0:T(8,128)(2,1)} multiply(%c, %b)
}
"""


OVERLAPPED = """
HloModule step

%beside (p0: f32[8], p1: f32[64], p2: f32[4]) -> (f32[4], f32[8], f32[64], f32[64]) {
  %p0 = f32[8]{0} parameter(0)
  %p1 = f32[64]{0} parameter(1)
  %part = f32[64]{0} all-gather(%p0), "async_collective_fusion_config":{}
  %p2 = f32[4]{0} parameter(2)
  %work = f32[4]{0} negate(%p2)
  ROOT %all = (f32[4], f32[8], f32[64], f32[64]) tuple(%work, %p0, %p1, %part)
}

ENTRY %main (a: f32[8], b: f32[64], c: f32[4]) -> (f32[4], f32[8], f32[64], f32[64]) {
  %a = f32[8]{0} parameter(0)
  %b = f32[64]{0} parameter(1)
  %c = f32[4]{0} parameter(2)
  ROOT %d = (f32[4]{0}, f32[8]{0}, f32[64]{0}, f32[64]{0}) fusion(%a, %b, %c), ALIASES
}
""".replace(
    "ALIASES",
    "kind=kOutput, calls=%beside,"
    " output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {}), {3}: (1, {})}",
)


def test_a_collective_beside_other_work_is_no_traffic_of_that_work():
    assert count_traffic(OVERLAPPED) == 4 * 4 + 4 * 4  # reads c, writes its negation
    # Without the mark, the same arrays are written in place: all of them count.
    plain = OVERLAPPED.replace("async_collective_fusion_config", "other")
    assert count_traffic(plain) == 4 * (4 + 8 + 64) + 4 * (4 + 8 + 64 + 64)


def test_traffic_counts_every_turn_slices_and_only_hbm():
    # A turn reads one row and the index (4 bytes, twice), and writes one row.
    turn = 32 + 4 + 32 + 4
    copied = 32  # from HBM to the vector memory
    multiplied = 32 + 32  # reads b and writes d; c is near
    assert count_traffic(PROGRAM) == 12 * turn + copied + multiplied


def test_padding_fills_the_tiles_of_a_layout():
    layout = "{3,0,2,1:T(8,128)(2,1)}"
    text = f"bf16[60,9,9,48]{layout} fusion(f32[5]{{0:T(128)}} %a, f32[4]{{0}} %b)"
    padded = f"bf16[64,9,9,128]{layout} fusion(f32[128]{{0:T(128)}} %a, f32[4]{{0}} %b)"
    assert with_padding(text) == padded


def read_run(name):
    argv = ["main.py", f"--config=configs/{name}.py", "--plan=here"]
    return read_run_config(read_command_line(argv).fields)


def outputs(name):
    """Numbers that the convolutions and matrix products of a forward pass write."""
    config = read_run(name)
    side = math.ceil(config.input.preprocess.image_size / 2)
    total = 0
    for block in itertools.chain(*expand_stages(config.model.image_tower)):
        after = math.ceil(side / block.stride)
        total += side**2 * block.expanded * (block.expansion > 1)
        total += after**2 * (block.expanded + block.channels_out)
        side = after
    text, tokens = config.model.text_tower, config.model.text_tower.max_tokens
    layer = tokens * (10 * text.hidden + text.hidden // 64 * tokens)
    return total + text.layers * layer


def test_the_traffic_of_the_larger_model_grows_as_its_outputs():
    base, large = step_bounds.MODELS
    grown = outputs(large.config) / outputs(base.config)
    assert large.traffic / base.traffic == pytest.approx(grown, rel=0.01)


@pytest.mark.tpu  # traces for a minute, needs no TPU compiler
@pytest.mark.parametrize("model", step_bounds.MODELS, ids=lambda model: model.config)
def test_counted_work_is_that_of_the_configs(model):
    config = read_run(model.config)
    assert (config.batch_size, config.total_steps) == (
        step_bounds.PAIRS,
        step_bounds.STEPS,
    )
    assert config.fsdp == model.fsdp
    mesh = make_mesh(1, jax.devices()[:1])
    step = config.make_plan(mesh)
    flops = sum(count_model_flops(step, config.batch_shapes(mesh)).values())
    assert flops / step_bounds.PAIRS == pytest.approx(model.flops, rel=5e-3)
    leaves, _ = jax.tree_util.tree_flatten_with_path(abstract_state(step).params)
    assert sum(x.size for _, x in leaves) == model.parameters
    gradients = sum(
        x.size * step_bounds.gradient_bytes(path[-1].key) for path, x in leaves
    )
    assert gradients == model.gradients
