import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.devices.mesh import make_mesh
from align_jax.losses import contrastive_gpu, logit_kernels
from align_jax.losses.contrastive import contrastive_loss
from tests.jaxprs import largest_array
from tests.reference import embeddings


@pytest.fixture(scope="module", autouse=True)
def small_tiles():
    """Shrinks tiles, bands and chunks, so that few pairs make several of each."""
    with pytest.MonkeyPatch.context() as patch:
        shape = logit_kernels.TileShape(rows=16, columns=32, depth=32)
        patch.setattr(contrastive_gpu, "STATISTICS", shape)
        patch.setattr(contrastive_gpu, "GRADIENTS", shape)
        patch.setattr(contrastive_gpu, "CHUNK_BYTES", 2 * 64 * 100)
        # 64 texts of 100 images; with 29 images, all texts are one block.
        patch.setattr(contrastive_gpu, "STATISTICS_BYTES", 4800)
        patch.setattr(logit_kernels, "BAND", 2)
        yield


def value_and_gradients(mesh, arguments, **options):
    """Returns loss, metrics, and the gradients of images, texts and temperature."""
    gradient = jax.value_and_grad(contrastive_loss, (0, 1, 2), has_aux=True)
    arguments = [jnp.asarray(a, jnp.float32) for a in arguments]
    return jax.jit(lambda *a: gradient(*a, mesh, **options))(*arguments)


def assert_kernels_equal_walk(mesh, ximg, ytxt, temperature, **options):
    arguments = (ximg, ytxt, temperature)
    (loss, metrics), gradients = value_and_gradients(
        mesh, arguments, kernels="interpret", **options
    )
    (expected, by_name), expected_gradients = value_and_gradients(
        mesh, arguments, kernels="plain", **options
    )
    np.testing.assert_allclose(loss, expected, rtol=2e-3)
    for name, value in by_name.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-3, err_msg=name)
    for mine, theirs in zip(gradients, expected_gradients, strict=True):
        error = jnp.linalg.norm(mine - theirs) / jnp.linalg.norm(theirs)
        assert error < 5e-3


def rounded(x):
    return np.asarray(contrastive_gpu.rounded(jnp.asarray(x, jnp.float32)), np.float32)


@pytest.mark.parametrize(
    ("devices", "n", "d", "smoothing", "groups", "temperature"),
    [
        (1, 5, 80, 0.1, 1, 1.0),
        (1, 99, 80, 0.0, 1, 1 / 64),
        (1, 128, 640, 0.1, 1, 1.0),
        (4, 4 * 29, 320, 0.1, 1, 1 / 64),
        (4, 4 * 18, 80, 0.1, 4, 0.2),
    ],
)
def test_kernels_equal_the_walk_over_the_rounded_embeddings(
    mesh_of, devices, n, d, smoothing, groups, temperature
):
    ximg, ytxt = rounded(embeddings(n, d, seed=n))
    ytxt[-1] = ytxt[0]  # a tie
    options = {"label_smoothing": smoothing, "negatives": 1 / groups}
    assert_kernels_equal_walk(mesh_of(devices), ximg, ytxt, temperature, **options)


@pytest.mark.parametrize("seed", range(2))
def test_kernels_equal_the_walk_over_random_sizes(mesh_of, seed):
    rng = np.random.default_rng(seed)
    devices = int(rng.choice([1, 4]))
    n, d = devices * int(rng.integers(5, 60)), int(rng.integers(64, 200))
    ximg, ytxt = rounded(embeddings(n, d, seed))
    temperature, smoothing = rng.uniform(1 / 64, 1), rng.uniform(0, 0.2)
    assert_kernels_equal_walk(
        mesh_of(devices), ximg, ytxt, temperature, label_smoothing=smoothing
    )


def test_rounding_the_embeddings_changes_little(mesh_of):
    ximg, ytxt = embeddings(200, 640)
    assert_kernels_equal_walk(mesh_of(1), ximg, ytxt, 1 / 64, label_smoothing=0.1)


def test_logits_far_apart_are_exact(mesh_of):
    # At this temperature no single shift works for a whole tile.
    ximg, ytxt = rounded(embeddings(64, 80))
    ytxt[:32] = -ytxt[:32]
    assert_kernels_equal_walk(mesh_of(1), ximg, ytxt, 1e-3, label_smoothing=0.1)


@pytest.mark.skipif(
    not importlib.metadata.version("jaxlib").startswith("0.10."),
    reason="later releases compile a kernel where they lower it, by the CUDA plugin",
)
@pytest.mark.parametrize("devices", [1, 8])
def test_the_gradient_lowers_for_cuda_without_a_gpu(devices, monkeypatch):
    monkeypatch.setattr(contrastive_gpu, "STATISTICS", logit_kernels.TileShape())
    monkeypatch.setattr(contrastive_gpu, "GRADIENTS", logit_kernels.TileShape())
    mesh = make_mesh(devices=jax.devices()[:devices])
    gradient = jax.value_and_grad(contrastive_loss, (0, 1, 2), has_aux=True)
    x = jax.ShapeDtypeStruct((65536, 640), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    traced = jax.jit(lambda *a: gradient(*a, mesh, 0.1, kernels="triton")).trace(
        x, x, scalar
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "statistics_kernel" in text
    assert "gradients_kernel" in text


def test_no_array_grows_with_the_square_of_the_batch(mesh_of, monkeypatch):
    for name in ("CHUNK_BYTES", "STATISTICS_BYTES"):
        monkeypatch.setattr(contrastive_gpu, name, 2**27)
    for name in ("STATISTICS", "GRADIENTS"):
        monkeypatch.setattr(contrastive_gpu, name, logit_kernels.TileShape())
    pairs, width = 2**18, 64
    gradient = jax.value_and_grad(contrastive_loss, (0, 1, 2), has_aux=True)
    x = jax.ShapeDtypeStruct((pairs, width), jnp.float32)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    traced = jax.make_jaxpr(lambda *a: gradient(*a, mesh_of(1), kernels="triton"))(
        x, x, scalar
    )
    # A chunk of the logits' gradient has two bytes a number.
    assert largest_array(traced.jaxpr) <= max(pairs * width, 2**27 // 2)


def test_kernels_are_chosen_by_device_and_precision(mesh_of):
    mesh = mesh_of(1)
    assert contrastive_gpu.choose("auto", "default", mesh) == "plain"  # on a CPU
    assert contrastive_gpu.choose("triton", "highest", mesh) == "triton"
    with pytest.raises(ValueError, match="kernels is 'all'; known: auto, plain"):
        contrastive_gpu.choose("all", "default", mesh)
