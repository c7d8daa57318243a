import jax
import numpy as np
import pytest

from align_jax.devices.mesh import BATCH_AXES, batch_position, make_mesh, slices_of
from align_jax.errors import InputError


def test_slices_are_the_outer_axis_whatever_the_order_of_the_devices():
    devices = jax.devices()[:8]
    mesh = make_mesh(2, devices, slices=[5, 3, 5, 3, 3, 5, 5, 3])
    assert mesh.axis_names == BATCH_AXES
    assert mesh.devices.shape == (2, 2, 2)
    numbers = [[device.id for device in part.flat] for part in mesh.devices]
    assert numbers == [[1, 3, 4, 7], [0, 2, 5, 6]]
    np.testing.assert_array_equal(slices_of(mesh), [0, 0, 0, 0, 1, 1, 1, 1])


class Gpu:
    """A device of one of several nodes."""

    device_kind = platform = "gpu"

    def __init__(self, number, node):
        self.id, self.slice_index, self.process_index = number, node, number


def test_devices_say_in_which_slice_they_are():
    gpus = [Gpu(number, node=number % 2) for number in range(4)]
    mesh = make_mesh(2, gpus)
    assert [[gpu.id for gpu in part.flat] for part in mesh.devices] == [[0, 2], [1, 3]]
    with pytest.raises(InputError, match="does not divide 2 devices of a slice"):
        make_mesh(4, gpus)


def test_devices_without_slices_are_one():
    mesh = make_mesh(4)
    assert mesh.devices.shape == (1, 2, 4)
    assert [*mesh.devices.flat] == jax.devices()
    assert not slices_of(mesh).any()


@pytest.mark.parametrize(
    ("fsdp", "slices", "message"),
    [
        (8, [0] * 4 + [1] * 4, "fsdp is 8, which does not divide 4 devices of a slice"),
        (3, [0] * 4 + [1] * 4, "fsdp is 3, which does not divide 4 devices of a slice"),
        (3, [0] * 8, "fsdp is 3, which does not divide 8 devices$"),
        (0, [0] * 8, "fsdp is 0"),
        (1, [2] * 5 + [0] * 3, r"slices \[0, 2\] have \[3, 5\] devices; wanted"),
    ],
)
def test_a_state_stays_inside_equal_slices(fsdp, slices, message):
    with pytest.raises(InputError, match=message):
        make_mesh(fsdp, jax.devices(), slices)


class Tpu:
    """A chip of a slice in which four chips share a host, as JAX describes v5e:4x4."""

    platform, device_kind = "tpu", "TPU v5 lite"
    slice_index = core_on_chip = 0

    def __init__(self, number):
        x, y = number % 4, number // 4
        self.id, self.coords = number, (x, y, 0)
        self.process_index = x // 2 + 2 * (y // 2)


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_the_chips_of_a_host_are_neighbours(fsdp):
    """Otherwise pairs would be on other virtual cores than on one device."""
    mesh = make_mesh(fsdp, [Tpu(number) for number in range(16)])
    hosts = [chip.process_index for chip in mesh.devices.flat]
    assert hosts == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert len({chip.id for chip in mesh.devices.flat}) == 16


def test_a_process_finds_its_rows_by_its_devices():
    gpus = [Gpu(number, node=(number + 1) % 2) for number in range(4)]
    assert batch_position(make_mesh(1, gpus)) == 2  # after processes 1 and 3
