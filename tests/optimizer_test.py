import jax
import jax.numpy as jnp
import numpy as np

from align_jax.optimizer import (
    OptimizerConfig,
    adapted_parameters,
    make_optimizer,
    make_schedule,
)

PARAMS = {
    "image_tower": {
        "stem_norm": {"scale": jnp.array([1.0, 2.0])},
        "stem": {"kernel": jnp.array([[0.5, -1.0], [2.0, 0.1]])},
    },
    "text_tower": {"output_norm": {"scale": jnp.array([1.0, 1.0])}},
    "temperature": jnp.array(1.0),
}


def lamb(weights, gradients, rate, decay, adapt, b1=0.9, b2=0.999, epsilon=1e-6):
    """LAMB of one parameter over all steps, from arXiv 1904.00962, in float64."""
    w = np.asarray(weights, np.float64)
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        update = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon)
        if adapt:
            update = update + decay * w
            norms = np.linalg.norm(w), np.linalg.norm(update)
            update = update * (norms[0] / norms[1] if min(norms) > 0 else 1.0)
        w = w - rate * update
    return w


def test_lamb_equals_its_equations_with_batch_norm_left_out():
    config = OptimizerConfig(weight_decay=0.01)
    optimizer = make_optimizer(config, lambda _: 0.05)
    rng = np.random.default_rng(0)
    gradients = [
        jax.tree.map(lambda w: rng.normal(size=w.shape), PARAMS) for _ in range(20)
    ]
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradient in gradients:
        gradient = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradient)
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    adapted = adapted_parameters(PARAMS)
    expected = jax.tree.map(
        lambda w, adapt, *gs: lamb(w, gs, 0.05, 0.01, adapt),
        PARAMS,
        adapted,
        *gradients,
    )
    for mine, theirs in zip(
        jax.tree.leaves(params), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_only_batch_norm_is_left_out():
    assert adapted_parameters(PARAMS) == {
        "image_tower": {"stem_norm": {"scale": False}, "stem": {"kernel": True}},
        "text_tower": {"output_norm": {"scale": True}},
        "temperature": True,
    }


def test_the_rate_rises_then_falls_linearly():
    schedule = make_schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=4), 12)
    rates = [float(schedule(step)) for step in (0, 2, 4, 8, 12)]
    np.testing.assert_allclose(rates, [0.0, 1.0, 2.0, 1.0, 0.0])
