"""Compares walks over images by interpreted kernels with the same walks by XLA."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.devices.kernel_choice import INTERPRET, Kernels
from align_jax.devices.mesh import batch_split, make_mesh
from align_jax.kernels import walk_programs
from align_jax.kernels.image_walks import (
    image_sums,
    kernel_map,
    kernel_sums,
    plain_sums,
)
from align_jax.kernels.walk_tiles import WORKLOAD, Cut, WalkTile, choose_tile

SMALL = WORKLOAD._replace(lanes=64, warps=1, programs=8, rounds=3)


def products(arithmetic, x, cotangent, factor, shift):
    """Returns the factors of three sums; the third is not 0 where x is 0."""
    value = arithmetic.multiply_add(x, factor, shift)
    share = arithmetic.sigmoid(value)
    return (cotangent * share,), (cotangent, value), (share, factor)


def mapped(arithmetic, x, cotangent, factor, shift):
    return arithmetic.multiply_add(x, factor, shift) * arithmetic.sigmoid(cotangent)


def powers(arithmetic, x):
    return (x,), (x, x)


def draw(seed, channels, dtype=jnp.float32):
    random = np.random.default_rng(seed)
    batch, height, width = random.integers(1, 9, 3)
    shape = (batch, height, width, channels)
    wide = [jnp.asarray(random.normal(size=shape), dtype) for _ in range(2)]
    small = jnp.asarray(random.normal(size=(batch, 2, channels)), jnp.float32)
    return wide, small


@pytest.mark.parametrize(
    ("channels", "abreast"), [(1, 2), (7, 3), (24, 2), (40, 1), (72, 3), (200, 2)]
)
def test_sums_and_maps_are_xlas(channels, abreast):
    options = {"workload": SMALL._replace(abreast=abreast), "interpret": True}
    wide, small = draw(channels, channels)
    found = kernel_sums(products, wide, small, 3, **options)
    expected = plain_sums(products, wide, small)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    images = len(small)  # summed together
    found = kernel_sums(products, wide, small, 3, images=images, **options)
    expected = expected.sum(0, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    out = kernel_map(mapped, wide, small, **options)
    x, cotangent = wide
    factor, shift = (small[:, n, None, None] for n in range(2))
    expected = (x * factor + shift) * jax.nn.sigmoid(cotangent)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("images", [2, 4, 8])  # half a device, one device, both
def test_images_are_summed_together_wherever_they_lie(images):
    random, mesh = np.random.default_rng(0), make_mesh(devices=jax.devices()[:2])
    x = jnp.asarray(random.normal(size=(8, 3, 5, 24)), jnp.float32)
    placed = jax.device_put(x, batch_split(mesh))

    @jax.jit
    def sums(x):
        kernels = Kernels(INTERPRET, mesh)
        return image_sums(powers, [x], None, 2, kernels, images=images)

    grouped = x.reshape(-1, images * 15, 24)
    expected = jnp.stack([grouped.sum(1), jnp.square(grouped).sum(1)], 1)
    np.testing.assert_allclose(sums(placed), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_summed_and_mapped_in_float32():
    options = {"workload": SMALL, "interpret": True}
    wide, small = draw(0, 40, jnp.bfloat16)
    found = kernel_sums(products, wide, small, 3, **options)
    assert found.dtype == jnp.float32
    exact = [x.astype(jnp.float32) for x in wide]
    expected = plain_sums(products, exact, small)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    out = kernel_map(mapped, wide, small, **options)
    expected = kernel_map(mapped, exact, small, **options)
    np.testing.assert_array_equal(out, expected.astype(jnp.bfloat16))


def test_tiles_by_hand():
    # 7 pixels of 144 channels fill 1008 of 1024 lanes.
    assert choose_tile(144, 1024) == WalkTile(144, 7)
    # A pixel of 1056 channels does not fit. The widest slabs that fill 85 % have 176
    # channels: 5 pixels of them fill 880 of 1024 lanes.
    assert choose_tile(1056, 1024) == WalkTile(176, 5)
    # 40 of 64 lanes are too few. With slabs of 8 channels, 8 pixels fill all lanes.
    assert choose_tile(40, 64) == WalkTile(8, 8)
    # No tile of 11 channels fills 85 % of 16 lanes; one slab of 11 does best.
    assert choose_tile(11, 16) == WalkTile(11, 1)
    cut = Cut.of((128, 19, 19, 1056), WORKLOAD)
    # 128 images of 6 slabs are 768 programs, fewer than 2048. So each slab has 3
    # strips, of at most 25 of the 73 tiles.
    assert (cut.slabs, cut.strips, cut.rounds) == (6, 3, 25)
    # 10 x 10 pixels are 34 tiles, whose strips must have at least 16 tiles.
    assert Cut.of((128, 10, 10, 304), WORKLOAD)[-2:] == (3, 16)


def test_the_short_sigmoid_is_one(monkeypatch):
    """Carries out the sigmoid's instructions in numpy."""
    taken = []
    monkeypatch.setattr(
        walk_programs, "_instruct", lambda text, x: taken.append(text) or x
    )
    walk_programs.fast_sigmoid(jnp.zeros(1))
    for x in np.array([-90.0, -20.0, -1.5, 0.0, 0.3, 8.0, 100.0], np.float32):
        values = {"$1": x}

        def value(name, values=values):
            if name.startswith("0f"):
                return np.float32(struct.unpack(">f", bytes.fromhex(name[2:]))[0])
            return values[name]

        for line in taken[0].strip("{} \n").split(";"):
            operation, *names = line.replace(",", " ").split() or [""]
            if operation.startswith((".", "}")) or not operation:
                continue
            target, *arguments = names
            with np.errstate(over="ignore"):
                values[target] = {
                    "mul.f32": np.multiply,
                    "add.f32": np.add,
                    "ex2.approx.ftz.f32": np.exp2,
                    "rcp.approx.ftz.f32": np.reciprocal,
                }[operation](*map(value, arguments))
        expected = 1.0 / (1.0 + np.exp(-np.float64(x)))
        assert values["$0"] == pytest.approx(expected, rel=1e-5, abs=1e-38)
