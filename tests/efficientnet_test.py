from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.efficientnet import (
    EfficientNet,
    EfficientNetConfig,
    expand_stages,
    pooled_width,
)


def build(width, depth, **fields):
    config = EfficientNetConfig(width=width, depth=depth, **fields)
    return EfficientNet(config, batch_norm_group=2)


def shapes_of(model, size=64):
    return jax.eval_shape(
        lambda: model.init(
            jax.random.key(0), jnp.zeros((2, size, size, 3)), jnp.arange(1), False
        )
    )


@pytest.mark.parametrize(
    ("width", "depth", "blocks", "pooled", "parameters"),
    [
        (1.0, 1.0, 16, 320, 3_595_388),  # B0
        (1.2, 1.4, 26, 384, 10_103_336),  # B3
        (2.0, 3.1, 55, 640, 62_143_440),  # B7
    ],
)
def test_published_sizes(width, depth, blocks, pooled, parameters):
    config = EfficientNetConfig(width=width, depth=depth)
    assert len(expand_stages(config)) == blocks
    assert pooled_width(config) == pooled
    params = shapes_of(build(width, depth))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_stochastic_depth_grows_with_the_block():
    rates = [b.drop_rate for b in expand_stages(EfficientNetConfig(drop_rate=0.2))]
    np.testing.assert_allclose(rates, 0.2 * np.arange(16) / 16)


@pytest.mark.parametrize("train", [False, True])
def test_every_pixel_and_every_parameter_matters(train):
    model = build(0.25, 0.3, drop_rate=0.0)
    images = jax.random.normal(jax.random.key(1), (4, 33, 33, 3))
    cores = jnp.arange(2)
    variables = jax.jit(model.init, static_argnums=3)(
        jax.random.key(0), images, cores, False
    )
    weights = jax.random.normal(jax.random.key(2), (4, 80))

    def score(params, images):
        out, _ = model.apply(
            {**variables, "params": params}, images, cores, train, mutable=True
        )
        return (out * weights).sum()

    gradients = jax.jit(jax.grad(score, (0, 1)))
    to_params, to_images = gradients(variables["params"], images)
    assert (np.abs(to_images).sum((0, 3)) > 0).all()
    flat = jax.tree_util.tree_leaves_with_path(to_params)
    dead = [jax.tree_util.keystr(path) for path, g in flat if not np.any(g)]
    assert not dead


def test_an_image_is_encoded_alone_in_evaluation_and_with_its_group_in_training():
    model = build(0.25, 0.3, drop_rate=0.0)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    cores = jnp.arange(2)
    variables = jax.jit(model.init, static_argnums=3)(
        jax.random.key(0), images, cores, False
    )

    @partial(jax.jit, static_argnums=1)
    def encode(images, train):
        return model.apply(variables, images, cores, train, mutable=True)[0]

    def moved(train):
        changed = images.at[3].add(1.0)
        return np.any(encode(images, train) != encode(changed, train), axis=1).tolist()

    assert moved(False) == [False, False, False, True]
    assert moved(True) == [False, False, True, True]
