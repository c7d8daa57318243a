import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.devices.collectives import count_collectives
from align_jax.devices.mesh import batch_split, replicated, slices_of
from align_jax.errors import InputError
from align_jax.losses import contrastive_gpu, logit_kernels, tiles
from align_jax.losses.contrastive import contrastive_loss, nested_loss
from align_jax.losses.distillation import Teacher, distillation_loss
from align_jax.losses.objective import LossConfig, compute_loss
from align_jax.losses.sigmoid import sigmoid_loss
from align_jax.losses.tiles import make_tiling
from tests.reference import (
    contrastive_reference,
    distillation_reference,
    embeddings,
    sigmoid_reference,
)

D = 24


def drawn(n, width=D, seed=0):
    images, texts = embeddings(n, width, seed)
    texts[-1] = texts[0]
    return images, texts


def value_and_gradients(loss, mesh, numbers, exchange="ring", **options):
    """Returns ((loss, metrics), gradients) of a loss by all its numbers."""
    places = tuple(range(len(numbers)))
    gradient = jax.value_and_grad(loss, places, has_aux=True)
    arguments = [jnp.asarray(x, jnp.float32) for x in numbers]
    return jax.jit(lambda *a: gradient(*a, mesh=mesh, exchange=exchange, **options))(
        *arguments
    )


def assert_close(found, expected, tolerance=1e-5):
    for mine, theirs in zip(found, expected, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("devices", "fsdp", "slices", "n", "groups", "tile", "rows", "kept"),
    [
        (1, 1, 1, 37, 1, 10, 8, 16),  # padding in rows and columns
        (2, 1, 1, 64, 4, None, 32, 0),
        (4, 2, 1, 92, 2, 5, 7, 30),
        (8, 1, 1, 64, 1, None, 8, 4096),
        (8, 2, 2, 72, 1, 4, 5, 36),  # a ring in each slice, and one between slices
        (8, 1, 4, 64, 16, 3, 8, 12),
        (8, 1, 8, 8, 1, None, 1, 4096),
    ],
)
def test_the_ring_is_the_equation(
    mesh_of, monkeypatch, devices, fsdp, slices, n, groups, tile, rows, kept
):
    monkeypatch.setattr(tiles, "RING_ROWS", rows)
    monkeypatch.setattr(tiles, "KEPT_COLUMNS", kept)
    numbers = (*drawn(n, seed=n), 1 / 64)
    i2t, t2i, expected = contrastive_reference(*numbers, 0.1, groups)
    (loss, metrics), gradients = value_and_gradients(
        contrastive_loss,
        mesh_of(devices, fsdp, slices),
        numbers,
        label_smoothing=0.1,
        negatives=1 / groups,
        tile=tile,
    )
    np.testing.assert_allclose(loss, i2t + t2i, rtol=1e-5)
    np.testing.assert_allclose(metrics["i2t_loss"], i2t, rtol=1e-5)
    np.testing.assert_allclose(metrics["t2i_loss"], t2i, rtol=1e-5)
    assert_close(gradients, expected)


@pytest.mark.parametrize("seed", range(2))
def test_the_ring_is_the_gather_at_random_sizes(mesh_of, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    devices = int(rng.choice([2, 4, 8]))
    monkeypatch.setattr(tiles, "RING_ROWS", int(rng.integers(1, 20)))
    monkeypatch.setattr(tiles, "KEPT_COLUMNS", int(rng.integers(0, 100)))
    n, width = devices * int(rng.integers(1, 30)), int(rng.integers(5, 40))
    numbers = (*drawn(n, width, seed), rng.uniform(0.01, 1))
    options = {"tile": int(rng.integers(1, 30)), "label_smoothing": rng.uniform(0, 0.3)}
    options |= {"widths": (width, 3), "weights": (1.0, 0.5)}
    mesh = mesh_of(devices, 1, int(rng.choice([1, 2])))
    found, expected = (
        value_and_gradients(nested_loss, mesh, numbers, exchange, **options)
        for exchange in ("ring", "gather")
    )
    assert_close(jax.tree.leaves(found), jax.tree.leaves(expected))


def test_sigmoid_and_distillation_go_around_the_ring(mesh_of, monkeypatch):
    monkeypatch.setattr(tiles, "RING_ROWS", 5)
    mesh, images_and_texts = mesh_of(8, 1, 2), drawn(64)
    numbers = (*images_and_texts, 1 / 64, -2.0)
    expected, by_all = sigmoid_reference(*numbers)
    (loss, found), gradients = value_and_gradients(sigmoid_loss, mesh, numbers, tile=3)
    (_, metrics), _ = value_and_gradients(sigmoid_loss, mesh, numbers, "gather")
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert_close(gradients, by_all)
    assert found == metrics  # accuracies are counts of pairs

    teacher = (*drawn(64, 7, seed=1), 0.05)
    i2t, t2i, by_student = distillation_reference(numbers[:3], teacher, 2)

    def divergence(*student, **options):
        known = Teacher(*(jnp.asarray(x, jnp.float32) for x in teacher))
        found = distillation_loss(*student, known, **options)
        return found.i2t + found.t2i, found

    (loss, _), gradients = value_and_gradients(
        divergence, mesh, numbers[:3], tile=3, negatives=0.5
    )
    np.testing.assert_allclose(loss, i2t + t2i, rtol=1e-5)
    assert_close(gradients, by_student)


def test_kernels_go_around_the_ring(mesh_of, monkeypatch):
    shape = logit_kernels.TileShape(rows=16, columns=32, depth=32)
    monkeypatch.setattr(contrastive_gpu, "STATISTICS", shape)
    monkeypatch.setattr(contrastive_gpu, "GRADIENTS", shape)
    monkeypatch.setattr(contrastive_gpu, "RING_BLOCK", 16)
    pairs = [jnp.asarray(x, jnp.float32) for x in drawn(4 * 32, 80)]
    rounded = [np.asarray(contrastive_gpu.rounded(x), np.float64) for x in pairs]
    numbers = (*rounded, 1 / 64)
    (loss, _), gradients = value_and_gradients(
        contrastive_loss,
        mesh_of(4),
        numbers,
        kernels="interpret",
        label_smoothing=0.1,
    )
    i2t, t2i, expected = contrastive_reference(*numbers, 0.1)
    np.testing.assert_allclose(loss, i2t + t2i, rtol=2e-3)
    for mine, theirs in zip(gradients, expected, strict=True):
        assert np.linalg.norm(mine - theirs) < 5e-3 * np.linalg.norm(theirs)


def test_a_run_chooses_the_form_for_all_parts_of_its_loss(mesh_of):
    images, texts = (jnp.asarray(x, jnp.float32) for x in drawn(16))
    teacher = [jnp.asarray(x, jnp.float32) for x in drawn(16, 6, seed=1)]
    params = {"temperature": jnp.float32(0.2), "logit_bias": jnp.float32(-1.0)}
    fields = {"distillation": 0.5, "teacher_temperature": 0.1}
    for kind in ("softmax", "sigmoid"):
        jaxprs, losses = [], []
        for exchange in ("gather", "ring"):
            config = read_config(
                LossConfig, {"kind": kind, "exchange": exchange, **fields}
            )

            def loss(*embeddings, config=config):
                return compute_loss(
                    embeddings, None, params, config, mesh_of(4), (*teacher,)
                )[0]

            jaxprs.append(str(jax.make_jaxpr(loss)(images, texts)))
            losses.append(loss(images, texts))
        assert "all_gather" in jaxprs[0]
        assert "all_gather" not in jaxprs[1]
        np.testing.assert_allclose(*losses, rtol=1e-5)


def compiled_ring(mesh, n, d=16):
    rows, whole = batch_split(mesh), replicated(mesh)
    gradient = jax.jit(
        jax.value_and_grad(
            lambda x, y, s: contrastive_loss(x, y, s, mesh, 0.1, exchange="ring")[0],
            (0, 1, 2),
        ),
        in_shardings=(rows, rows, whole),
    )
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)
    return gradient.lower(x, x, jax.ShapeDtypeStruct((), jnp.float32)).compile()


def test_a_device_holds_no_more_if_devices_are_added(mesh_of, monkeypatch):
    monkeypatch.setattr(tiles, "RING_ROWS", 128)
    monkeypatch.setattr(tiles, "KEPT_COLUMNS", 256)
    monkeypatch.setattr(tiles, "BLOCK_BYTES", 2**15)
    n, d = 1024, 64  # pairs of a device, numbers of an embedding
    programs = [compiled_ring(mesh_of(k), k * n, d) for k in (2, 8)]
    two, eight = (p.memory_analysis().temp_size_in_bytes for p in programs)
    assert eight < 1.1 * two
    shapes = re.findall(r"f32\[([\d,]+)\]", programs[1].as_text())
    sizes = [np.prod([int(i) for i in shape.split(",")]) for shape in shapes]
    assert max(sizes) == 4 * n * d  # kept logits, 256 columns of n rows


def test_only_the_ring_between_slices_crosses_them(mesh_of):
    mesh, n, d = mesh_of(8, 1, 2), 512, 16
    found = count_collectives(compiled_ring(mesh, n, d).as_text(), slices_of(mesh))
    assert "all-gather" not in found
    assert "reduce-scatter" not in found
    # A device's 64 texts in both passes, their gradients in a loop and after it, and
    # numbers: positive logits, log-sum-exps, and two sums in a loop and after it.
    assert found["collective-permute"].crossing == 64 * (4 * d + 6) * 4


def test_a_ring_keeps_what_fits(mesh_of, monkeypatch):
    def kept(pairs, devices, slices=1, tile=None, walks=1):
        mesh = mesh_of(devices, 1, slices)
        tiling = make_tiling(pairs, mesh, 1.0, tile, "highest", walks, "ring")
        return tiling.rows, tiling.tile, tiling.kept_steps, tiling.kept

    assert kept(4096, 1) == (4096, 2048, 1, 2)  # all logits
    assert kept(4096, 8) == (512, 512, 8, 1)
    assert kept(16384, 8) == (2048, 2048, 2, 1)
    assert kept(16384, 8, slices=2) == (2048, 2048, 1, 1)
    assert kept(16384, 8, walks=4) == (2048, 2048, 0, 0)
    assert kept(2**20, 1)[:2] == (8192, 1024)
    tile, steps, blocks = kept(2**20, 1)[1:]
    assert 4 * 2**20 * steps * blocks * tile <= tiles.KEPT_BYTES


def test_what_does_not_fit_is_refused(mesh_of):
    x = jnp.eye(8)
    with pytest.raises(ValueError, match="exchange is 'all'; known: gather, ring"):
        contrastive_loss(x, x, jnp.float32(1.0), mesh_of(8), exchange="all")
    for fields, message in (
        ({"exchange": "all"}, "loss.exchange is 'all'; known: gather, ring"),
        ({"exchange": "ring", "kind": "cross_entropy"}, "which compares no pairs"),
    ):
        with pytest.raises(InputError, match=message):
            read_config(LossConfig, fields)
