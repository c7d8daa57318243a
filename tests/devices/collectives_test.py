import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from align_jax.devices.collectives import Collectives, count_collectives
from align_jax.devices.mesh import BATCH_AXES, batch_split, make_mesh, replicated
from align_jax.plan import find_devices

SLICES = np.repeat([0, 1], 4)  # eight devices


def test_collectives_are_counted_with_their_bytes():
    program = """
      %a = f32[8,4]{1,0} all-gather(%x), dimensions={0}
      %b = (f32[2]{0}, f32[8]{0}) all-gather-start(%y), dimensions={0}
      %c = f32[8]{0} all-gather-done(%b)
      %d = (bf16[10]{0}, f32[]) all-reduce(%p, %q), to_apply=%sum
    """
    assert count_collectives(program) == {
        "all-gather": Collectives(2, 8 * 4 * 4 + 8 * 4, 0),
        "all-reduce": Collectives(1, 24, 0),
    }


@pytest.mark.parametrize(
    ("operation", "crossing"),
    [
        # Eight devices: half of the rows are in the other slice.
        ("f32[8,2] all-gather(%x), replica_groups=[1,8]<=[8], dimensions={0}", 32),
        ("f32[8,2] all-gather(%x), replica_groups={}, dimensions={0}", 32),
        ("f32[8,2] all-gather(%x), dimensions={0}", 32),
        # Inside the slices nothing crosses.
        ("f32[8,2] all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}", 0),
        ("f32[8] all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}", 0),
        # Each device and the one at its place in the other slice.
        ("f32[8,2] all-gather(%x), replica_groups=[4,2]<=[2,4]T(1,0)", 32),
        ("f32[2] reduce-scatter(%x), replica_groups={{0,4},{1,5},{2,6},{3,7}}", 8),
        # Four partial sums of each of a device's two numbers, and as much for all sums.
        ("f32[2] reduce-scatter(%x), replica_groups=[1,8]<=[8]", 32),
        ("f32[8] all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%sum", 32),
        ("(f32[2], f32[2]) all-reduce-start(%x), replica_groups={{0,5},{1,2}}", 8),
        ("u8[8] all-to-all(%x), replica_groups=[1,8]<=[8]", 4),
        ("f32[2] collective-permute(%x), source_target_pairs={{0,1},{1,2}}", 0),
        ("f32[2] collective-permute(%x), source_target_pairs={{0,1},{3,4}}", 8),
        (
            "(f32[2], f32[2], u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x),"
            " source_target_pairs={{0,1},{3,4}}",
            8,
        ),
    ],
)
def test_bytes_between_slices_follow_from_the_groups(operation, crossing):
    (found,) = count_collectives(f"%a = {operation}", SLICES).values()
    assert found.operations == 1
    assert found.crossing == crossing
    (whole,) = count_collectives(f"%a = {operation}", [0] * 8).values()
    assert whole == found._replace(crossing=0)


def test_an_exchange_of_the_tpu_compiler_is_between_slices():
    attributes = """frontend_attributes={_xla_host_transfer_handler_name=
    "xla_megascale_runtime",_xla_megascale_transfer_type="%s"}""".replace("\n    ", "")
    gather, scatter = attributes % "ALL_GATHER", attributes % "REDUCE_SCATTER"
    program = f"""
      %a = (f32[4,2]{{1,0:T(8,128)}}, u32[], token[]) send(%x), channel_id=3, {gather}
      %b = (f32[8,2]{{1,0:T(8,128)}}, u32[], token[]) recv(%y), channel_id=2, {gather}
      %c = (f32[8,2]{{1,0:T(8,128)}}, token[]) recv-done(%b), channel_id=2
      %d = f32[16,2]{{1,0}} all-gather(%c), replica_groups={{{{0,1,2,3}}}}
      %e = (f32[5]{{0}}, u32[], token[]) recv(%z), channel_id=4, {scatter}
    """
    assert count_collectives(program, SLICES) == {
        "all-gather": Collectives(2, 64 + 128, 32),
        "reduce-scatter": Collectives(1, 20, 20),
    }


def overlapped(number):
    """Returns the computations of a gather that overlaps with two operations."""

    def part(name, flag, rest):
        return f"""
%{name}.{number} (x: f32[1,2], y: f32[4,4]) -> (f32[8,2], f32[4,4]) {{
  %x = f32[1,2]{{1,0}} parameter(0)
  %y = f32[4,4]{{1,0}} parameter(1)
  %a = f32[8,2]{{1,0:T(8,128)S(1)}} all-gather(%x), channel_id=1, dimensions={{0}}, \
frontend_attributes={{chain_id="{number}"}}, backend_config={{"flag_configs":[],\
"async_collective_fusion_config":{{"flag_start":"{flag}","flag_end":"8"}}}}
  ROOT %b = (f32[8,2], f32[4,4]) {rest}
}}
"""

    beside = "tuple(%a, %y)"
    return (
        part("start", -1, 'custom-call(%a), custom_call_target="AsyncCollectiveStart"')
        + part("async_collective_fusion", 2, beside)
        + part("async_collective_fusion.more", 2, beside)
        + part("done", 2, 'custom-call(%a), custom_call_target="AsyncCollectiveDone"')
    )


def test_parts_of_an_overlapped_collective_count_once():
    # The second gather has another start, and the third overlaps with nothing. All have
    # one channel, which does not tell them apart.
    plain = "f32[8,2]{1,0} all-gather(%x), channel_id=1, dimensions={0}"
    program = overlapped(0) + overlapped(1)
    program += f"\nENTRY %main () -> f32[8,2] {{\n  ROOT %a = {plain}\n}}\n"
    assert program.count(" all-gather(") == 9
    found = count_collectives(program, SLICES)
    assert found == {"all-gather": Collectives(3, 3 * 64, 3 * 32)}


@pytest.mark.tpu
def test_the_parts_of_the_tpu_compiler_count_once():
    mesh = make_mesh(1, find_devices("v5e:4x4"))
    rows, whole = batch_split(mesh), replicated(mesh)
    split = PartitionSpec(BATCH_AXES)

    def gather_twice(x, y, kernel):
        once = lax.all_gather(x, BATCH_AXES, tiled=True)
        for _ in range(3):
            y = jnp.tanh(y @ kernel)
        again = lax.all_gather(x + y[:64] @ once.T, BATCH_AXES, tiled=True)
        for _ in range(3):
            y = jnp.tanh(y @ kernel)
        return y[:64] @ again.T

    sharded = jax.shard_map(
        gather_twice,
        mesh=mesh,
        in_specs=(split, split, PartitionSpec()),
        out_specs=split,
        check_vma=False,
    )
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
        for shape, sharding in (
            ((16 * 64, 1024), rows),
            ((16 * 4096, 1024), rows),
            ((1024, 1024), whole),
        )
    ]
    lowered = jax.jit(sharded).lower(*arguments)
    program = str(lowered.compile().as_text())
    apart = {"xla_tpu_enable_async_collective_fusion": False}
    straight = str(lowered.compile(apart).as_text())
    assert len(re.findall(" all-gather\\(", program)) > 4  # more lines than two ends
    assert len(re.findall(" all-gather\\(", straight)) == 2
    gathers = count_collectives(program)["all-gather"]
    assert gathers == count_collectives(straight)["all-gather"]
    assert gathers == Collectives(2, 2 * 1024 * 1024 * 2)
