import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from align_jax.devices import mesh
from align_jax.devices.mesh import BATCH_AXES
from align_jax.training import integrity
from align_jax.training.integrity import DamagedCheckpointError


def checksum_of(array):
    """Computes Fletcher's sums one number at a time."""
    numbers = np.ascontiguousarray(array).reshape(-1).view(f"u{array.itemsize}")
    pairs = list(enumerate(numbers.tolist()))
    sums = sum(n for _, n in pairs), sum(i * n for i, n in pairs)
    return "".join(f"{value % 2**64:016x}" for value in sums)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, ml_dtypes.bfloat16, bool])
@pytest.mark.parametrize("shape", [(), (1,), (8,), (0, 4), (8, 4), (3, 2, 8, 16)])
def test_a_checksum_is_the_same_however_the_array_is_split(shape, dtype, mesh_of):
    random = np.random.default_rng(0)
    array = np.asarray(100 * random.standard_normal(shape)).astype(dtype)
    devices, expected = mesh_of(8), checksum_of(array)
    splits = [PartitionSpec()]
    for axis, size in enumerate(shape):
        if size and size % 8 == 0:
            splits.append(PartitionSpec(*[None] * axis, BATCH_AXES))
    arrays = [
        array,
        jnp.asarray(array),
        *(jax.device_put(array, NamedSharding(devices, split)) for split in splits),
    ]
    found, bad = integrity.measure({"a": arrays})
    assert [form[2] for form in found.values()] == [expected] * len(arrays)
    assert found["a.0"][:2] == [list(shape), str(np.dtype(dtype))]
    assert not bad


def test_one_or_two_flipped_bits_change_the_checksum():
    random = np.random.default_rng(0)
    whole = random.standard_normal((64, 32)).astype(np.float32)
    saved, _ = integrity.measure([whole])
    for count in (1, 2):
        for _ in range(100):
            damaged = whole.copy().view(np.uint32).reshape(-1)
            places = random.choice(damaged.size, count, replace=False)
            damaged[places] ^= np.uint32(1 << random.integers(32))
            found, _ = integrity.measure([damaged.view(np.float32).reshape(64, 32)])
            assert found != saved


def test_arrays_that_are_not_finite_are_named():
    tree = {"a": {"w": jnp.array([1.0, jnp.nan])}, "b": (jnp.ones(2), -jnp.inf)}
    tree = jax.tree.map(jnp.asarray, tree)
    assert integrity.measure(tree)[1] == ["a.w", "b.1"]
    assert not integrity.all_finite(tree)
    assert integrity.all_finite({"w": jnp.ones(3), "step": jnp.int32(1)})
    assert integrity.all_finite([jnp.int32(1)])
    with pytest.raises(
        DamagedCheckpointError, match=r"RUN/7 is damaged: NaN .* in a\.w, b\.1"
    ):
        integrity.check(tree, None, "RUN/7")


def test_small_arrays_of_one_type_are_joined():
    large = np.arange(mesh.SMALL, dtype=np.float32)
    tree = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": large,
        "c": np.full((), 6, np.float32),
        "d": np.ones(mesh.SMALL - 1, np.int32),
    }
    whole, joined, integers = integrity.join_small(tree)
    np.testing.assert_array_equal(whole, large)
    np.testing.assert_array_equal(joined, np.arange(7, dtype=np.float32))
    np.testing.assert_array_equal(integers, tree["d"])
    assert integrity.join_small({}) == []


def test_a_part_of_the_arrays_can_be_checked():
    tree = {"a": {"w": np.ones((2, 3), np.float32)}, "b": np.zeros(2, np.float32)}
    record = {"arrays": integrity.measure(tree)[0]}
    integrity.check({"a": tree["a"]}, record, "RUN/7")
    tree["a"]["w"][1, 2] = 1.5
    with pytest.raises(DamagedCheckpointError, match=r"bytes were changed in a\.w$"):
        integrity.check({"a": tree["a"]}, record, "RUN/7")
    integrity.check({"b": tree["b"]}, record, "RUN/7")
