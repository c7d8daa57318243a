"""The forms in which a tower may be computed give one result, for every tower."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.config import as_json, stored_fields
from align_jax.devices import mesh as mesh_module
from align_jax.devices.mesh import Placement, batch_split, state_sharding
from align_jax.models.parameters import TOWER_INPUTS
from align_jax.models.towers import (
    TOWERS,
    build_tower,
    read_image_tower,
    read_text_tower,
)

EVERY = [(name, kind) for name, towers in TOWERS.items() for kind in towers]
CORES, PAIRS = 8, 16  # two pairs a virtual core, which share BatchNorm's statistics


def inputs_of(name, config):
    rng = np.random.default_rng(0)
    if TOWER_INPUTS[name] == "images":
        return rng.normal(size=(PAIRS, 32, 32, 3)).astype(np.float32)
    shape = (PAIRS, config.max_tokens)
    tokens = rng.integers(1, config.vocabulary_size, shape).astype(np.int32)
    tokens[::2, -2:] = 0  # padding
    return tokens


def forms_of(config):
    """Returns forms of computing a tower; the first has all that is special."""
    again = (True,) if config.rematerialise is False else ("blocks",)
    if hasattr(config, "memory_choices"):
        again = config.memory_choices["rematerialise"][:0:-1]
    return [{"scan": True, "rematerialise": choice} for choice in again]


def first_variables(name, config, inputs):
    """Returns variables whose blocks and masks matter, whatever they start from."""
    tower = build_tower(name, config, jnp.float32)
    shapes = jax.eval_shape(
        lambda: tower.init(jax.random.key(0), inputs, np.arange(CORES), False)
    )
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key in ("var", "scale") else 0.0
        return (mean + rng.normal(0.0, 0.2, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def run(name, config, variables, inputs, dtype=jnp.float32, mesh=None):
    """Returns a training step's score and the gradients of the parameters."""
    placement = Placement(mesh) if mesh else None
    tower = build_tower(name, config, dtype, placement, PAIRS // CORES)
    if mesh:
        put = lambda x: jax.device_put(x, state_sharding(x.shape, mesh))  # noqa: E731
        params = jax.tree.map(put, variables["params"])
        inputs = jax.device_put(inputs, batch_split(mesh))
    else:
        params = variables["params"]

    def score(params, inputs):
        out, _ = tower.apply(
            {**variables, "params": params},
            inputs,
            jnp.arange(CORES),
            True,
            rngs={"dropout": jax.random.key(3)},
            mutable=["batch_stats"],
        )
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return (out * weights).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(score, has_aux=True))(
        params, inputs
    )
    return out, gradients


@pytest.fixture(scope="module")
def plain():
    """Returns a function that computes a tower in its plain form, once."""
    known = {}

    def make(name, kind):
        if (name, kind) not in known:
            config = TOWERS[name][kind][0].smallest()
            inputs = inputs_of(name, config)
            variables = first_variables(name, config, inputs)
            known[name, kind] = (
                *(config, variables, inputs),
                run(name, config, variables, inputs),
            )
        return known[name, kind]

    return make


def is_slow(kind, index):
    """Whether a form is left to `make test-pods`.

    EfficientNetV2 has EfficientNet's module, with all the parts of it.
    """
    return index > 0 or kind == "efficientnet"


CASES = [
    pytest.param(
        name, kind, form, marks=[pytest.mark.pods] if is_slow(kind, index) else []
    )
    for name, kind in EVERY
    for index, form in enumerate(forms_of(TOWERS[name][kind][0].smallest()))
]


@pytest.mark.parametrize(("name", "kind", "form"), CASES)
def test_a_form_on_eight_devices_gives_the_plain_form_s_gradients(
    name, kind, form, plain, mesh_of, monkeypatch
):
    monkeypatch.setattr(mesh_module, "SMALL", 1)  # the smallest towers are split, too
    config, variables, inputs, wanted = plain(name, kind)
    config = dataclasses.replace(config, **form)
    found = run(name, config, variables, inputs, mesh=mesh_of(8, 4))
    leaves = jax.tree.leaves(found[1])
    assert any(not leaf.sharding.is_fully_replicated for leaf in leaves)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted[1]))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(leaves, jax.tree.leaves(wanted[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_bfloat16_changes_a_result_by_its_rounding(name, kind, plain, mixed_types):
    config, variables, inputs, _ = plain(name, kind)

    def encode(dtype):
        tower = build_tower(name, config, dtype)
        return jax.jit(tower.apply, static_argnums=3)(variables, inputs, None, False)

    found, wanted = encode(jnp.bfloat16), encode(jnp.float32)
    assert found.dtype == jnp.float32
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 0 < error < 0.05


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_stored_tower_is_read_as_itself(name, kind):
    config = TOWERS[name][kind][0].smallest()
    read = {"image_tower": read_image_tower, "text_tower": read_text_tower}[name]
    assert read(as_json(stored_fields(config)), name) == config
