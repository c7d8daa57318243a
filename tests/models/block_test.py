"""What image and text towers of the same block share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.towers import TOWERS, build_tower
from tests.models import transformer_test, vit_test

CORES = jnp.arange(2)
CASES = {
    "image_tower": (vit_test.SMALLEST, jnp.asarray(vit_test.IMAGES)),
    "text_tower": (transformer_test.SMALLEST, jnp.asarray(transformer_test.TOKENS[:2])),
}
CREATE = {"image_tower": vit_test.create, "text_tower": transformer_test.create}


def run(name, config, variables, dtype=jnp.float32):
    """Returns the output in training and the gradient of a function of it."""
    tower, inputs = build_tower(name, config, dtype), CASES[name][1]
    keys = {"dropout": jax.random.key(3)}

    def score(params):
        out = tower.apply({"params": params}, inputs, CORES, True, rngs=keys)
        return jnp.sin(out).sum(), out

    (_, out), gradient = jax.jit(jax.value_and_grad(score, has_aux=True))(
        variables["params"]
    )
    return out, gradient


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A tower's name, config of two blocks and variables, and what `run` returns."""
    name = request.param
    config = dataclasses.replace(CASES[name][0], layers=2)
    _, variables = CREATE[name](config)
    return name, config, variables, run(name, config, variables)


@pytest.mark.parametrize("scan", [False, True])
def test_execution_changes_neither_result_nor_gradient(case, scan):
    name, config, variables, expected = case
    assert {"scan", "rematerialise"} == {*TOWERS[name][config.kind][0].execution_fields}
    config = dataclasses.replace(config, scan=scan, rematerialise="blocks")
    found = run(name, config, variables)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale)


def test_bfloat16_is_near_float32(case, mixed_types):
    name, config, variables, (expected, gradient) = case
    found, own = run(name, config, variables, jnp.bfloat16)
    leaves = jax.tree.leaves((found, own))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert 1e-4 < np.abs(found - expected).max() < 0.1
    flat = [
        np.concatenate([*map(np.ravel, jax.tree.leaves(g))]) for g in (own, gradient)
    ]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine > 0.999


def test_a_random_draw_belongs_to_its_example(case):
    """Stochastic depth, dropout and patch dropout differ between examples."""
    name, config, variables, (out, _) = case
    tower, inputs = build_tower(name, config, jnp.float32), CASES[name][1]
    twice = jnp.concatenate([inputs[:1], inputs[:1]])
    keys = {"dropout": jax.random.key(3)}
    apply = jax.jit(tower.apply, static_argnums=3)
    first, second = apply(variables, twice, CORES, True, rngs=keys)
    np.testing.assert_allclose(first, out[0], rtol=1e-4, atol=1e-5)
    assert np.abs(first - second).max() > 1e-3
