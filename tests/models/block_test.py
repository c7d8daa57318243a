"""Image and text towers of the same block."""

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


def run(name, config, variables):
    """Returns the output in training and the gradient of a function of it."""
    tower, inputs = build_tower(name, config, jnp.float32), CASES[name][1]
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


# In the fast tests, tower_forms_test computes the smallest towers in these forms.
@pytest.mark.pods
@pytest.mark.parametrize("scan", [False, True])
def test_execution_changes_neither_result_nor_gradient(case, scan):
    name, config, variables, expected = case
    assert {"scan", "rematerialise"} == {*TOWERS[name][config.kind][0].execution_fields}
    config = dataclasses.replace(config, scan=scan, rematerialise="blocks")
    found = run(name, config, variables)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1]))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale)


def test_a_random_draw_belongs_to_its_example(case):
    """Stochastic depth, dropout and patch dropout differ between examples."""
    name, config, variables, _ = case
    tower, inputs = build_tower(name, config, jnp.float32), CASES[name][1]
    equal = jnp.concatenate([inputs[:1]] * 16)
    keys = {"dropout": jax.random.key(3)}
    apply = jax.jit(tower.apply, static_argnums=3)
    found = apply(variables, equal, CORES, True, rngs=keys)
    assert len(np.unique(np.round(found, 3), axis=0)) > 4
