import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.training.optimizer import (
    OptimizerConfig,
    check_patterns,
    make_optimizer,
    trainable,
)

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "lamb.npz")
PARAMS = {
    "image_tower": {
        "stem_norm": {"scale": jnp.array([1.0, 2.0])},
        "stem": {"kernel": jnp.array([[0.5, -1.0], [2.0, 0.1]])},
    },
    "text_tower": {"output_norm": {"scale": jnp.array([1.0, 1.0])}},
    "temperature": jnp.array(1.0),
}
EXEMPT = ("^image_tower/.*_norm/",)
ONES = jax.tree.map(jnp.ones_like, PARAMS)


def nested(prefix):
    """Returns the golden arrays below a prefix as a tree."""
    tree: dict = {}
    for name in GOLDEN.files:
        if name.startswith(prefix + "/"):
            *path, last = name.split("/")[1:]
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = GOLDEN[name]
    return tree


def unstack(tree, step):
    """Returns one step of arrays (steps, ...)."""
    return jax.tree.map(lambda x: x[step], tree)


@pytest.mark.parametrize(
    ("kind", "exclusions"),
    [("unmasked", {"undecayed": (), "unadapted": ()}), ("masked", {})],
)
def test_lamb_is_that_of_tensorflow_addons(kind, exclusions):
    config = OptimizerConfig(weight_decay=float(GOLDEN["decay"]), **exclusions)
    optimizer = make_optimizer(config, lambda _: float(GOLDEN["rate"]), EXEMPT)
    gradients, expected = nested("gradients"), nested(kind)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, nested("start"))
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        rows = []
        for gradient in (unstack(gradients, step) for step in range(20)):
            updates, state = update(gradient, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            rows.append(params)
    for step, found in enumerate(rows):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7),
            found,
            unstack(expected, step),
        )


def step_of(gradients=ONES, steps=1, **fields):
    """Returns the change of every parameter after steps with learning rate 1."""
    fields = {"kind": "sgd", "b1": 0.0, "weight_decay": 0.0} | fields
    optimizer = make_optimizer(OptimizerConfig(**fields), lambda _: 1.0, EXEMPT)
    params, state = PARAMS, optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    for _ in range(steps):
        updates, state = update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return jax.tree.map(jnp.subtract, params, PARAMS)


def test_frozen_parameters_stay_and_have_no_state():
    fields = {"frozen": ("^image_tower/", "^temperature$"), "kind": "lamb"}
    config = OptimizerConfig(**fields)
    change = step_of(**fields)
    assert not any(np.any(x) for x in jax.tree.leaves(change["image_tower"]))
    assert change["temperature"] == 0
    assert np.all(change["text_tower"]["output_norm"]["scale"] < 0)
    assert trainable(config, PARAMS) == {
        "image_tower": {"stem_norm": {"scale": False}, "stem": {"kernel": False}},
        "text_tower": {"output_norm": {"scale": True}},
        "temperature": False,
    }
    state = make_optimizer(config, lambda _: 1.0, EXEMPT).init(PARAMS)
    moments = [x.shape for x in jax.tree.leaves(state) if x.shape]
    assert moments == [(2,), (2,)]


def test_the_first_fitting_rate_factor_counts():
    factors = (("stem/", 0.1), ("^image_tower/", 0.5), ("temperature", 3.0))
    change = step_of(rate_factors=factors)
    np.testing.assert_allclose(change["image_tower"]["stem"]["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(change["image_tower"]["stem_norm"]["scale"], -0.5)
    np.testing.assert_allclose(change["text_tower"]["output_norm"]["scale"], -1.0)
    np.testing.assert_allclose(change["temperature"], -3.0)


def test_gradients_are_clipped_by_their_global_norm():
    count = sum(x.size for x in jax.tree.leaves(PARAMS))
    change = step_of(clip_norm=0.5)
    np.testing.assert_allclose(change["temperature"], -0.5 / count**0.5, rtol=1e-6)
    np.testing.assert_allclose(step_of(clip_norm=100.0)["temperature"], -1.0)


def test_momentum_and_weight_decay_by_hand():
    # Momentum gives steps of 1 and 1.9. With decay 0.1, the gradient of w is 1 + 0.1 w.
    np.testing.assert_allclose(step_of(steps=2, b1=0.9)["temperature"], -2.9)
    change = step_of(weight_decay=0.1)
    np.testing.assert_allclose(change["temperature"], -1.1)
    np.testing.assert_allclose(change["image_tower"]["stem_norm"]["scale"], -1.0)


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_adaptive_optimizers_scale_gradients_away_and_decay(kind):
    fields = {"kind": kind, "b1": 0.0}
    small = step_of(jax.tree.map(lambda g: 0.01 * g, ONES), **fields)
    large = step_of(jax.tree.map(lambda g: 100.0 * g, ONES), **fields)
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(large), strict=True):
        np.testing.assert_allclose(a, -1.0, rtol=1e-3)
        np.testing.assert_allclose(a, b, rtol=1e-3)
    decayed = step_of(weight_decay=0.1, **fields)
    np.testing.assert_allclose(decayed["temperature"], -1.1, rtol=1e-3)
    np.testing.assert_allclose(
        decayed["image_tower"]["stem_norm"]["scale"], -1.0, rtol=1e-3
    )


def test_a_pattern_that_fits_no_parameter_is_refused():
    names = ["image_tower/stem_norm/scale", "temperature"]
    check_patterns(OptimizerConfig(frozen=("temp",)), names)
    with pytest.raises(ValueError, match="frozen has the pattern 'txt', which fits no"):
        check_patterns(OptimizerConfig(frozen=("txt",)), names)
    with pytest.raises(ValueError, match="rate_factors has the pattern 'head'"):
        check_patterns(OptimizerConfig(rate_factors=(("head", 10.0),)), names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "lars"}, "optimizer.kind is 'lars'; known: lamb, sgd, adamw"),
        ({"muon_others": "sgd"}, "muon_others is 'sgd'; known: adamw, lamb"),
        (
            {"rate_factors": ("^text", 0.1)},
            r"rate_factors\[0\] is '\^text' \(str\); wanted tuple",
        ),
        ({"frozen": ("*image",)}, r"frozen has '\*image', which is no regular expr"),
        ({"average_decay": 1.0}, "average_decay is 1.0; wanted above 0, below 1"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        read_config(OptimizerConfig, fields)
