import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from align_jax.config import read_config
from align_jax.devices.kernel_choice import INTERPRET, Kernels
from align_jax.devices.mesh import batch_split, make_mesh
from align_jax.errors import InputError
from align_jax.models.convnext import (
    ConvNeXt,
    ConvNeXtBlock,
    ConvNeXtConfig,
    drop_rates,
)


def randomised(variables, seed):
    """Returns variables of the same shapes whose every number matters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(rng.normal(0.0, 0.3, x.shape), np.float32), variables
    )


def block_by_hand(params, x, epsilon):
    """ConvNeXt's block (arXiv 2201.03545, figure 4) in float64, one pixel a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    _, height, width, _ = x.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (3, 3), (3, 3), (0, 0)))
    out = np.zeros(x.shape)
    for row in range(height):
        for column in range(width):
            seen = padded[:, row : row + 7, column : column + 7]  # (B, 7, 7, C)
            taps = params["depthwise"]["kernel"][:, :, 0]
            hidden = (seen * taps).sum((1, 2)) + params["depthwise"]["bias"]
            hidden = hidden - hidden.mean(1, keepdims=True)
            hidden = hidden / np.sqrt(hidden.var(1, keepdims=True) + epsilon)
            hidden = hidden * params["norm"]["scale"] + params["norm"]["bias"]
            expand, project = params["expand"], params["project"]
            hidden = hidden @ expand["kernel"][0, 0] + expand["bias"]
            hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
            hidden = hidden @ project["kernel"][0, 0] + project["bias"]
            out[:, row, column] = x[:, row, column] + params["layer_scale"] * hidden
    return out


@pytest.mark.parametrize("seed", range(2))
def test_a_block_is_that_of_plain_numpy(seed):
    rng = np.random.default_rng(seed)
    shape = (2, *rng.integers(1, 9, 2), rng.integers(3, 12))
    x = rng.normal(size=shape).astype(np.float32)
    block = ConvNeXtBlock(ConvNeXtConfig(norm_epsilon=0.01))
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, None)
    params = randomised(shapes["params"], seed)
    # Stochastic depth scales what is added, by example.
    found = jax.jit(block.apply)({"params": params}, x, np.float32([0.0, 2.0]))
    wanted = block_by_hand(params, x, 0.01)
    np.testing.assert_allclose(found[0], x[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], 2 * wanted[1] - x[1], rtol=1e-4, atol=1e-4)


def test_a_tower_is_its_stem_its_blocks_and_its_norms():
    config = ConvNeXtConfig.smallest()
    tower = ConvNeXt(config)
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda: tower.init(jax.random.key(0), images, None, False))
    params = randomised(shapes["params"], 1)

    def norm(x, weights):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(x.var(-1, keepdims=True) + config.norm_epsilon)
        return x * weights["scale"] + weights["bias"]

    def patches(x, side, weights):
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // side, side, width // side, side, channels)
        x = np.einsum("bhpwqc,pqcd->bhwd", x, weights["kernel"])
        return x + weights["bias"]

    x = norm(patches(images, 4, params["stem"]), params["stem_norm"])
    x = block_by_hand(params["block_00"], x, config.norm_epsilon)
    x = patches(norm(x, params["down_1_norm"]), 2, params["down_1"])
    for name in ("block_01", "block_02"):
        x = block_by_hand(params[name], x, config.norm_epsilon)
    wanted = norm(x.mean((1, 2)), params["final_norm"])
    found = jax.jit(tower.apply, static_argnums=3)(
        {"params": params}, images, None, False
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_published_first_values_and_depths():
    config = ConvNeXtConfig.smallest()
    create = jax.jit(ConvNeXt(config).init, static_argnums=3)
    params = create(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), None, False)
    block = params["params"]["block_02"]
    assert set(np.unique(block["layer_scale"])) == {np.float32(1e-6)}
    assert 0.015 < np.std(block["expand"]["kernel"]) < 0.025
    assert np.abs(block["depthwise"]["kernel"]).max() < 0.05  # two deviations
    assert not any(np.any(block[n]["bias"]) for n in ("depthwise", "expand", "project"))
    assert len(ConvNeXtConfig().block_names()) == 18
    assert drop_rates(ConvNeXtConfig(drop_rate=0.1))[::17] == [0.0, 0.1]
    assert drop_rates(ConvNeXtConfig(stages=((1, 8),), drop_rate=0.5)) == [0.0]


def test_every_pixel_matters_where_strides_leave_a_remainder():
    tower = ConvNeXt(ConvNeXtConfig(stages=((1, 4), (1, 8))))
    images = np.random.default_rng(1).normal(size=(1, 17, 18, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda: tower.init(jax.random.key(0), images, None, False))
    variables = {"params": randomised(shapes["params"], 3)}
    images = np.repeat(images, 4, axis=0)
    images[1, 16], images[2, :, 17], images[3, 0, 0] = 2.0, 2.0, 2.0
    run = jax.jit(tower.apply, static_argnums=3)
    found = run(variables, images, None, False)
    assert (np.abs(found[1:] - found[:1]).max(1) > 1e-3).all()


@pytest.mark.pods
def test_kernels_change_neither_a_blocks_result_nor_its_gradient():
    mesh = make_mesh(devices=jax.devices()[:2])
    config = ConvNeXtConfig(layer_scale=1.0)
    x = jax.random.normal(jax.random.key(0), (4, 5, 6, 8))
    x = jax.device_put(x, batch_split(mesh))
    shapes = jax.eval_shape(ConvNeXtBlock(config).init, jax.random.key(0), x, None)
    params = randomised(shapes["params"], 2)

    def run(kernels):
        block = ConvNeXtBlock(config, kernels=kernels)

        def score(params, x):
            return jnp.sin(block.apply({"params": params}, x, None)).sum()

        return jax.jit(jax.value_and_grad(score, (0, 1)))(params, x)

    found, wanted = run(Kernels(INTERPRET, mesh)), run(Kernels())
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_faulty_fields_are_refused():
    def refused(message, **fields):
        with pytest.raises(InputError, match=message):
            read_config(ConvNeXtConfig, fields, "config.model.image_tower")

    refused(r"stages is \(\); wanted one row or more", stages=())
    refused(r"stages\[1\]\[0\] is 0; wanted 1 or more", stages=((1, 8), (0, 8)))
    refused("rematerialise is 'x'; known: none, pointwise", rematerialise="x")
    refused("drop_rate is 1.0; wanted", drop_rate=1.0)
