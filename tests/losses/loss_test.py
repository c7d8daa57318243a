import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.devices.collectives import count_collectives
from align_jax.devices.mesh import BATCH_AXES, batch_split, replicated, slices_of
from align_jax.losses import exchange, softmax_terms, tiles
from align_jax.losses.contrastive import contrastive_loss
from align_jax.losses.tiles import make_tiling
from tests.reference import contrastive_reference, embeddings


def value_and_gradients(mesh, ximg, ytxt, temperature, **options):
    """Returns loss, metrics, and the gradients of images, texts and temperature."""
    gradient = jax.value_and_grad(contrastive_loss, (0, 1, 2), has_aux=True)
    arguments = [jnp.asarray(a, jnp.float32) for a in (ximg, ytxt, temperature)]
    return jax.jit(lambda *a: gradient(*a, mesh, **options))(*arguments)


@functools.cache  # large references take seconds in float64
def duplicated_pairs(n, temperature, smoothing, groups=1):
    """Returns embeddings with a text that occurs twice, and the equation's results."""
    ximg, ytxt = embeddings(n)
    ytxt[-1] = ytxt[0]
    return ximg, ytxt, contrastive_reference(ximg, ytxt, temperature, smoothing, groups)


def assert_equals_reference(mesh, n, temperature, smoothing, tile, groups=1):
    pairs = duplicated_pairs(n, temperature, smoothing, groups)
    ximg, ytxt, (i2t, t2i, expected) = pairs
    (loss, metrics), gradients = value_and_gradients(
        mesh,
        ximg,
        ytxt,
        temperature,
        label_smoothing=smoothing,
        tile=tile,
        negatives=1 / groups,
    )
    np.testing.assert_allclose(loss, i2t + t2i, rtol=1e-5)
    np.testing.assert_allclose(metrics["i2t_loss"], i2t, rtol=1e-5)
    np.testing.assert_allclose(metrics["t2i_loss"], t2i, rtol=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(("devices", "tile"), [(1, None), (8, 500)])
def test_the_equation_holds_for_thousands_of_pairs(mesh_of, devices, tile):
    assert_equals_reference(mesh_of(devices), 2048, 1 / 128, 0.1, tile)


@pytest.mark.parametrize("temperature", [1.0, 1 / 128])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("devices", "n", "tile"),
    [
        (1, 2, None),
        (1, 2, 1),
        (1, 64, 24),  # three tiles, the last cut short
        (8, 64, 24),
        (8, 8, None),
        (8, 512, 128),
    ],
)
def test_loss_and_gradients_equal_the_equation(
    mesh_of, devices, n, tile, smoothing, temperature
):
    assert_equals_reference(mesh_of(devices), n, temperature, smoothing, tile)


@pytest.mark.parametrize("kept", [0, 24, 48])  # of three tiles: none, one or two
@pytest.mark.parametrize("devices", [1, 8])
def test_logits_are_kept_or_computed_again(mesh_of, monkeypatch, devices, kept):
    monkeypatch.setattr(tiles, "KEPT_COLUMNS", kept)
    assert make_tiling(64, mesh_of(devices), 1.0, 24, "highest").kept == kept // 24
    assert_equals_reference(mesh_of(devices), 64, 1 / 128, 0.1, 24)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("groups", [2, 4, 16])
def test_negatives_are_limited_to_groups_of_pairs(mesh_of, devices, groups):
    assert_equals_reference(mesh_of(devices), 64, 0.2, 0.1, tile=12, groups=groups)


@pytest.mark.parametrize(("fsdp", "slices"), [(2, 2), (1, 4)])
@pytest.mark.parametrize("groups", [1, 4])
def test_slices_gather_in_the_order_of_the_pairs(mesh_of, fsdp, slices, groups):
    mesh = mesh_of(8, fsdp, slices)
    assert_equals_reference(mesh, 64, 1 / 128, 0.1, tile=24, groups=groups)


@pytest.fixture
def loss_of(mesh_of):
    """Returns a function that computes loss and metrics on 8 devices in tiles of 5."""

    def compute(ximg, ytxt, temperature=0.2, **options):
        arguments = [jnp.asarray(a, jnp.float32) for a in (ximg, ytxt, temperature)]
        loss, metrics = contrastive_loss(*arguments, mesh_of(8), tile=5, **options)
        return float(loss), {name: float(value) for name, value in metrics.items()}

    return compute


def test_no_information_costs_log_n_a_direction_and_ties_count_as_wrong(loss_of):
    same = np.tile(np.eye(1, 5), (16, 1))
    loss, metrics = loss_of(same, same, label_smoothing=0.1)
    np.testing.assert_allclose(loss, 2 * np.log(16), rtol=1e-6)
    assert metrics["i2t_accuracy"] == metrics["t2i_accuracy"] == 0
    halves, _ = loss_of(same, same, negatives=0.5)
    np.testing.assert_allclose(halves, 2 * np.log(8), rtol=1e-6)


def test_the_mean_of_the_directions_is_half_their_sum(loss_of):
    ximg, ytxt = embeddings(16)
    total, mean = (loss_of(ximg, ytxt, reduction=r)[0] for r in ("sum", "mean"))
    np.testing.assert_allclose(total, 2 * mean, rtol=1e-6)


def test_swapping_towers_swaps_the_directions(loss_of):
    ximg, ytxt = embeddings(16)
    loss, metrics = loss_of(ximg, ytxt)
    swapped, swapped_metrics = loss_of(ytxt, ximg)
    np.testing.assert_allclose(loss, swapped, rtol=1e-6)
    for name in ("loss", "accuracy"):
        found = swapped_metrics[f"t2i_{name}"]
        np.testing.assert_allclose(metrics[f"i2t_{name}"], found, rtol=1e-6)


def test_the_order_of_the_pairs_does_not_matter(loss_of):
    ximg, ytxt = embeddings(16)
    order = np.random.default_rng(1).permutation(16)
    loss, metrics = loss_of(ximg, ytxt)
    shuffled, shuffled_metrics = loss_of(ximg[order], ytxt[order])
    np.testing.assert_allclose(loss, shuffled, rtol=1e-6)
    assert metrics["t2i_accuracy"] == shuffled_metrics["t2i_accuracy"]


def test_aligning_a_pair_lowers_the_loss(loss_of):
    ximg, ytxt = embeddings(16)
    before, _ = loss_of(ximg, ytxt)
    closer = ytxt.copy()
    closer[3] = ximg[3]
    after, _ = loss_of(ximg, closer)
    aligned, metrics = loss_of(ximg, ximg)
    assert aligned < after < before
    assert metrics["i2t_accuracy"] == metrics["t2i_accuracy"] == 1


def test_accuracies_by_hand(loss_of):
    # Image 1 is nearest to text 0, text 1 to image 1; the other pairs are right.
    ximg, ytxt = np.eye(8, 8), np.eye(8, 8)
    ximg[1] = [0.8, 0.6, 0, 0, 0, 0, 0, 0]
    _, metrics = loss_of(ximg, ytxt)
    assert metrics["i2t_accuracy"] == 7 / 8
    assert metrics["t2i_accuracy"] == 1
    _, swapped = loss_of(ytxt, ximg)
    assert (swapped["i2t_accuracy"], swapped["t2i_accuracy"]) == (1, 7 / 8)


def test_what_does_not_fit_is_refused(mesh_of):
    s = jnp.float32(1.0)
    for n, options, message in (
        (24, {"reduction": "max"}, "reduction is 'max'; known: sum, mean"),
        (24, {"negatives": 0.3}, "negatives is 0.3; wanted 1 / a whole number"),
        (24, {"negatives": 0.2}, "divides 24 pairs"),
        (24, {"tile": 0}, "tile is 0"),
        (12, {}, "12 pairs do not divide over 8 devices"),
    ):
        with pytest.raises(ValueError, match=message):
            contrastive_loss(jnp.eye(n), jnp.eye(n), s, mesh_of(8), **options)


def compiled_gradient(mesh, n, d, smoothing=0.1):
    rows, whole = batch_split(mesh), replicated(mesh)
    gradient = jax.jit(
        jax.value_and_grad(
            lambda x, y, s: contrastive_loss(x, y, s, mesh, smoothing)[0], (0, 1, 2)
        ),
        in_shardings=(rows, rows, whole),
    )
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)
    return gradient.lower(x, x, jax.ShapeDtypeStruct((), jnp.float32)).compile()


def test_the_compiled_loss_never_holds_all_logits(mesh_of):
    n, d = 4096, 16
    text = compiled_gradient(mesh_of(8), n, d).as_text()
    shapes = re.findall(r"[a-z]\w*\[([\d,]+)\]", text)
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    # A device's block is 512 rows by one tile, here all columns: N x N / 8 logits.
    assert max(sizes) < n * n
    gathers = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)
    assert gathers
    assert max(math.prod(map(int, g.split(","))) for g in gathers) == n * d


def test_a_row_enters_a_slice_once(mesh_of, monkeypatch):
    mesh, n, d = mesh_of(8, 1, 2), 512, 16

    def crossing(smoothing):
        program = compiled_gradient(mesh, n, d, smoothing).as_text()
        found = count_collectives(program, slices_of(mesh))
        return {kind: count.crossing for kind, count in found.items()}

    once = crossing(0.1)
    # The texts, twice if they are gathered again, and two numbers a pair; 64 pairs come
    # from the device at the same place. The gradients of the texts go back.
    assert once["all-gather"] in [64 * (k * d + 2) * 4 for k in (1, 2)]
    assert once["reduce-scatter"] == 64 * (d + 1) * 4
    monkeypatch.setattr(
        exchange, "gather", lambda x: jax.lax.all_gather(x, BATCH_AXES, tiled=True)
    )
    for module in (exchange, softmax_terms):
        monkeypatch.setattr(
            module,
            "scatter_sum",
            lambda x: jax.lax.psum_scatter(x, BATCH_AXES, tiled=True),
        )
    straight = crossing(0.2)
    assert straight["all-gather"] == 4 * once["all-gather"]
    assert straight["reduce-scatter"] == 4 * once["reduce-scatter"]


def test_memory_grows_linearly_with_the_batch(mesh_of):
    used = [
        compiled_gradient(mesh_of(1), n, 64).memory_analysis().temp_size_in_bytes
        for n in (4096, 8192, 16384, 32768)
    ]
    for before, after in itertools.pairwise(used):
        assert after < 2.3 * before, used


def test_a_tile_fills_its_memory_and_no_more(mesh_of):
    assert make_tiling(2**16, mesh_of(1), 1.0, None, "highest").tile == 128
    assert make_tiling(2**16, mesh_of(8), 1.0, None, "highest").tile == 1024
    assert make_tiling(2**10, mesh_of(1), 1.0, None, "highest").tile == 1024
