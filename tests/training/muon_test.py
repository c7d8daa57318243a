import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import muon

from align_jax.compile import compile_run
from align_jax.errors import InputError
from align_jax.training.integrity import all_finite, squared_moments
from align_jax.training.muon import is_matrix
from align_jax.training.optimizer import OptimizerConfig, make_optimizer
from align_jax.training.parameter_choice import check_parameters
from align_jax.training.training_runs import read_run_config
from tests import tiny

RATE, DECAY = 0.1, 0.01
SHAPES = {
    "dense": {"kernel": (5, 7), "bias": (7,)},
    "query": {"kernel": (8, 2, 4)},  # inputs, heads, head
    "attention_output": {"kernel": (2, 4, 8)},
    "stem": {"kernel": (3, 3, 2, 6)},  # height, width, inputs, outputs
    "depthwise": {"kernel": (3, 3, 1, 6)},
    "words": {"embedding": (9, 4)},
    "norm": {"scale": (7,)},
}
# The matrices that the kernels are.
MATRICES = {
    "dense": (5, 7),
    "query": (8, 8),
    "attention_output": (8, 8),
    "stem": (18, 6),
}


def draw(seed):
    random = np.random.default_rng(seed)
    shapes, structure = jax.tree.flatten(SHAPES, lambda x: isinstance(x, tuple))
    return jax.tree.unflatten(
        structure,
        [jnp.asarray(random.normal(size=s).astype(np.float32)) for s in shapes],
    )


GRADIENTS = [draw(seed) for seed in (1, 2, 3)]


def train(optimizer, params, gradients):
    """Returns the parameters after every step."""
    state, rows, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        rows.append(params)
    return rows


def make(kind="muon", **fields):
    config = OptimizerConfig(kind=kind, weight_decay=DECAY, **fields)
    return make_optimizer(config, lambda _: RATE, exempt=("norm/",))


def assert_close(found, wanted):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        wanted,
    )


def orthogonal(g):
    """Newton and Schulz's iteration of https://kellerjordan.github.io/posts/muon/."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (np.linalg.norm(g) + 1e-8)
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


@pytest.mark.parametrize("name", MATRICES)
def test_each_kernel_takes_the_orthogonal_step_of_its_matrix(name):
    """The equations of arXiv 2502.16982, section 2, step by step."""
    momentum, w = 0.8, np.asarray(draw(0)[name]["kernel"], np.float64)
    found = train(make(muon_momentum=momentum), draw(0), GRADIENTS)
    mean = np.zeros_like(w)
    for step, (gradient, params) in enumerate(zip(GRADIENTS, found, strict=True), 1):
        g = np.asarray(gradient[name]["kernel"], np.float64)
        mean = momentum * mean + (1 - momentum) * g
        # Nesterov's momentum, without the bias of the first steps.
        ahead = momentum * mean / (1 - momentum ** (step + 1))
        ahead += (1 - momentum) * g / (1 - momentum**step)
        step_of = orthogonal(ahead.reshape(MATRICES[name])).reshape(w.shape)
        w = w - RATE * (0.2 * max(MATRICES[name]) ** 0.5 * step_of + DECAY * w)
        np.testing.assert_allclose(params[name]["kernel"], w, rtol=1e-4, atol=1e-5)


def test_matrices_move_as_in_optax():
    reference = muon(
        RATE, beta=0.95, weight_decay=DECAY, consistent_rms=0.2
    )  # of matrices only
    part = {"dense": {"kernel": draw(0)["dense"]["kernel"]}}
    gradients = [{"dense": {"kernel": g["dense"]["kernel"]}} for g in GRADIENTS]
    for mine, theirs in zip(
        train(make(), part, gradients),
        train(reference, part, gradients),
        strict=True,
    ):
        assert_close(mine, theirs)


@pytest.mark.parametrize("others", ["adamw", "lamb"])
def test_all_other_parameters_move_as_under_another_optimizer(others):
    found = train(make(muon_others=others), draw(0), GRADIENTS)[-1]
    plain = train(make(kind=others), draw(0), GRADIENTS)[-1]
    for name, parts in SHAPES.items():
        for leaf in parts:
            same = np.array_equal(found[name][leaf], plain[name][leaf])
            assert same != (name in MATRICES and leaf == "kernel"), (name, leaf)


def test_patterns_choose_matrices_and_frozen_ones_have_no_state():
    chosen = ("query", "depthwise", "norm")
    optimizer = make(muon_matrices=chosen, frozen=("^stem/",))
    found = train(optimizer, draw(0), GRADIENTS)[-1]
    plain = train(make(kind="adamw"), draw(0), GRADIENTS)[-1]
    orthogonal = train(make(), draw(0), GRADIENTS)[-1]
    for name, expected in {
        "dense": plain,  # no pattern fits
        "depthwise": plain,  # a pattern fits, but it is no matrix
        "norm": plain,
        "query": orthogonal,
        "stem": draw(0),
    }.items():
        assert_close(found[name], expected[name])
    sizes = [x.shape for x in jax.tree.leaves(optimizer.init(draw(0)))]
    assert SHAPES["stem"]["kernel"] not in sizes
    assert sizes.count(SHAPES["query"]["kernel"]) == 1  # its momentum
    assert sizes.count(SHAPES["depthwise"]["kernel"]) == 2  # AdamW's moments


def test_undecayed_matrices_do_not_decay():
    still = [jax.tree.map(jnp.zeros_like, GRADIENTS[0])]
    before = draw(0)
    (after,) = train(make(undecayed=("query",)), before, still)
    for name in MATRICES:
        factor = 1.0 if name == "query" else 1.0 - RATE * DECAY
        np.testing.assert_allclose(
            after[name]["kernel"], factor * before[name]["kernel"], rtol=1e-6
        )


@pytest.mark.parametrize("kind", ["muon", "lamb", "adafactor", "schedule_free_adamw"])
def test_a_gradient_that_is_not_finite_shows_in_the_same_step(kind):
    optimizer = make(kind=kind, decay="constant")
    update = jax.jit(optimizer.update)
    for name in SHAPES:
        (leaf, *_), state = SHAPES[name], optimizer.init(draw(0))
        gradient = jax.tree.map(jnp.array, GRADIENTS[0])
        for bad in (False, True):
            if bad:
                gradient[name][leaf] = gradient[name][leaf].at[0].set(jnp.nan)
            _, state = update(gradient, state, draw(0))
            assert all_finite(squared_moments(state)) == (not bad), (name, bad)


def test_steps_are_of_one_size_whatever_the_matrix_and_the_gradient():
    random = np.random.default_rng(0)
    shapes = {"a": (64, 64), "b": (32, 128), "c": (3, 3, 8, 32), "d": (96, 2, 16)}
    params = {n: {"kernel": jnp.zeros(shape)} for n, shape in shapes.items()}
    for size in (1e-6, 1e3):
        gradients = [
            {
                n: {"kernel": jnp.asarray(size * random.normal(size=s), jnp.float32)}
                for n, s in shapes.items()
            }
        ]
        (found,) = train(make(), params, gradients)
        for name in shapes:
            rms = np.sqrt(np.mean(np.square(found[name]["kernel"]))) / RATE
            assert 0.14 < rms < 0.24, (name, rms)


def test_vectors_and_tables_are_no_matrices():
    names = [
        f"{name}/{leaf}"
        for name, parts in draw(0).items()
        for leaf, x in parts.items()
        if is_matrix(f"{name}/{leaf}", x)
    ]
    assert {*names} == {f"{name}/kernel" for name in MATRICES}


def test_a_pattern_that_fits_no_matrix_is_refused(tmp_path):
    fields = tiny.make_run(tmp_path)
    for pattern in ("depthwise", "bias$", "^text_tower/.*embedding"):
        fields["optimizer"]["muon_matrices"] = ("kernel", pattern)
        message = re.escape(f"the pattern {pattern!r}, which fits no matrix")
        with pytest.raises(InputError, match=message):
            check_parameters(read_run_config(fields))
        with pytest.raises(InputError, match=message):
            compile_run(fields, str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()
    fields["optimizer"]["muon_matrices"] = ("kernel", "projection")
    check_parameters(read_run_config(fields))
