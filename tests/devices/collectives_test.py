import numpy as np
import pytest

from align_jax.devices.collectives import Collectives, count_collectives

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
