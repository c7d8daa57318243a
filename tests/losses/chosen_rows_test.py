import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.devices.mesh import batch_split
from align_jax.losses import chosen_rows
from align_jax.losses.chosen_rows import take_rows


@pytest.mark.parametrize(("devices", "slices"), [(1, 1), (8, 1), (8, 2)])
@pytest.mark.parametrize("most", [1, 2**20])
def test_chosen_rows_arrive_whole_and_in_order(
    mesh_of, monkeypatch, devices, slices, most
):
    monkeypatch.setattr(chosen_rows, "MOVED_BYTES", most)
    mesh, random = mesh_of(devices, slices=slices), np.random.default_rng(0)
    indices = np.sort(random.choice(160, 48, replace=False))
    indices[:3] = 159  # of another device, and more than once
    for shape, dtype in (((5, 3), np.uint8), ((), np.int32), ((7,), np.float32)):
        array = random.integers(0, 256, (160, *shape)).astype(dtype)
        x = jax.device_put(array, batch_split(mesh))
        taken = jax.jit(lambda x, i: take_rows(x, i, mesh))(x, jnp.asarray(indices))
        np.testing.assert_array_equal(taken, array[indices])
        assert taken.sharding.is_equivalent_to(batch_split(mesh), taken.ndim)
