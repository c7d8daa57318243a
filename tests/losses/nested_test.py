import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.devices.collectives import count_collectives
from align_jax.devices.mesh import batch_split, replicated, slices_of
from align_jax.losses import contrastive_gpu, logit_kernels
from align_jax.losses.contrastive import contrastive_loss, nested_loss, shorten
from align_jax.models.dual_encoder import unit_length
from align_jax.training.flops import count_flops
from tests.reference import contrastive_reference, embeddings

D, WIDTHS, WEIGHTS = 24, (24, 12, 5), (1.0, 0.5, 2.0)


def value_and_gradients(function, mesh, n=64, temperature=0.2, **options):
    """Returns ((loss, metrics), gradients) of a loss of drawn embeddings."""
    gradient = jax.value_and_grad(function, (0, 1, 2), has_aux=True)
    ximg, ytxt = embeddings(n, D)
    ytxt[-1] = ytxt[0]
    arguments = [jnp.asarray(a, jnp.float32) for a in (ximg, ytxt, temperature)]
    return jax.jit(lambda *a: gradient(*a, mesh, **options))(*arguments)


def nested(mesh, widths=WIDTHS, weights=WEIGHTS, **options):
    return value_and_gradients(
        nested_loss, mesh, widths=widths, weights=weights, **options
    )


def sum_of_losses(ximg, ytxt, temperature, mesh, **options):
    """The loss of truncated embeddings for every width, summed."""
    total, named = 0.0, {}
    for width, weight in zip(WIDTHS, WEIGHTS, strict=True):
        whole = (ximg, ytxt)
        prefixes = whole if width == D else [unit_length(x[:, :width]) for x in whole]
        loss, metrics = contrastive_loss(*prefixes, temperature, mesh, **options)
        total += weight * loss
        prefix = f"width_{width}/" if width < D else ""
        named |= {f"{prefix}{name}": value for name, value in metrics.items()}
    return total, named


def assert_close(found, wanted):
    def compare(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())

    jax.tree.map(compare, found, wanted)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.pods), 8])
@pytest.mark.parametrize(
    "options", [{}, {"tile": 12, "negatives": 0.25, "reduction": "mean"}]
)
def test_it_is_the_sum_of_the_losses_of_truncated_embeddings(mesh_of, devices, options):
    mesh, options = mesh_of(devices), {"label_smoothing": 0.1, **options}
    expected = value_and_gradients(sum_of_losses, mesh, **options)
    assert_close(nested(mesh, **options), expected)


def test_each_width_is_the_equation(mesh_of):
    (_, metrics), _ = nested(mesh_of(8), label_smoothing=0.1)
    ximg, ytxt = embeddings(64, D)
    ytxt[-1] = ytxt[0]
    for width in WIDTHS:
        prefixes = [
            x[:, :width] / np.linalg.norm(x[:, :width], axis=1, keepdims=True)
            for x in (ximg, ytxt)
        ]
        i2t, t2i, _ = contrastive_reference(*prefixes, 0.2, 0.1)
        prefix = f"width_{width}/" if width < D else ""
        np.testing.assert_allclose(metrics[f"{prefix}i2t_loss"], i2t, rtol=1e-5)
        np.testing.assert_allclose(metrics[f"{prefix}t2i_loss"], t2i, rtol=1e-5)


def test_kernels_agree_with_the_walk(mesh_of, monkeypatch):
    shape = logit_kernels.TileShape(rows=16, columns=32, depth=32)
    monkeypatch.setattr(contrastive_gpu, "STATISTICS", shape)
    monkeypatch.setattr(contrastive_gpu, "GRADIENTS", shape)
    (loss, metrics), gradients = nested(mesh_of(4), kernels="interpret")
    (expected, by_name), wanted = nested(mesh_of(4), kernels="plain")
    np.testing.assert_allclose(loss, expected, rtol=2e-3)
    for name, value in by_name.items():
        if name.endswith("loss"):
            np.testing.assert_allclose(metrics[name], value, rtol=2e-3, err_msg=name)
    for mine, theirs in zip(gradients, wanted, strict=True):
        error = jnp.linalg.norm(mine - theirs) / jnp.linalg.norm(theirs)
        assert error < 5e-3


@pytest.mark.parametrize("seed", range(3))
def test_a_shortened_gradient_is_that_of_the_prefix(seed):
    random = np.random.default_rng(seed)
    x, weights = jnp.asarray(random.normal(size=(2, 7, D)), jnp.float32)
    width = int(random.integers(1, D))
    short, pull = shorten(x, width)
    np.testing.assert_allclose(jnp.linalg.norm(short, axis=1), 1.0, rtol=1e-6)
    expected = jax.grad(
        lambda x: (unit_length(x[:, :width]) * weights[:, :width]).sum()
    )
    np.testing.assert_allclose(
        pull(weights[:, :width]), expected(x), rtol=1e-5, atol=1e-6
    )


def test_texts_are_gathered_once(mesh_of):
    mesh, n = mesh_of(8), 256
    split, whole = batch_split(mesh), replicated(mesh)

    def step(ximg, ytxt, temperature):
        gradient = jax.grad(
            lambda *a: nested_loss(*a, mesh, WIDTHS, WEIGHTS)[0], (0, 1, 2)
        )
        return gradient(ximg, ytxt, temperature)

    compiled = jax.jit(step, in_shardings=(split, split, whole)).lower(
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, D), (n, D), ()))
    )
    found = count_collectives(compiled.compile().as_text(), slices_of(mesh))
    gathered = found["all-gather"].size / 4
    # The texts once; for every width their logits forward, their log-sum-exps back.
    assert gathered == n * (D + 2 * len(WIDTHS))


def test_its_work_is_that_of_the_widths(mesh_of):
    mesh, n = mesh_of(8), 64
    arguments = [jnp.zeros((n, D)), jnp.zeros((n, D)), jnp.float32(1.0)]

    def work(function, **options):
        gradient = jax.value_and_grad(function, (0, 1, 2), has_aux=True)
        return count_flops(lambda *a: gradient(*a, mesh, **options), *arguments)

    whole = work(contrastive_loss)
    parts = work(nested_loss, widths=WIDTHS, weights=WEIGHTS)
    assert parts == pytest.approx(whole * sum(WIDTHS) / D, rel=1e-6)


def test_a_width_beyond_the_embeddings_is_refused(mesh_of):
    with pytest.raises(ValueError, match=r"\(30, 5\); the embeddings have 24 numbers"):
        nested(mesh_of(1), (30, 5), (1.0, 1.0))
