import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import schedule_free_adamw, schedule_free_eval_params

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.losses.objective import hold_temperature
from align_jax.training.optimizer import OptimizerConfig, make_optimizer
from align_jax.training.schedule_free import evaluation_point, map_points
from align_jax.training.schedules import make_schedule

KIND = {"kind": "schedule_free_adamw", "decay": "constant"}
FIELDS = KIND | {
    "learning_rate": 0.1,
    "warmup_steps": 3,
    "b1": 0.9,
    "b2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.02,
}
STEPS = 6


def draw(seed):
    random = np.random.default_rng(seed)
    return {
        "tower": {"kernel": jnp.asarray(random.normal(size=(4, 3)), jnp.float32)},
        "norm": {"scale": jnp.asarray(random.normal(size=3), jnp.float32)},
        "temperature": jnp.float32(abs(random.normal())),
    }


GRADIENTS = [draw(seed) for seed in range(1, STEPS + 1)]


def make(**fields):
    config = read_config(OptimizerConfig, FIELDS | fields)
    return make_optimizer(config, make_schedule(config, 100), exempt=())


def train(optimizer, hold=lambda params: params):
    """Yields (state, parameters) after every step."""
    params, update = draw(0), jax.jit(optimizer.update)
    state = optimizer.init(params)
    for gradient in GRADIENTS:
        updates, state = update(gradient, state, params)
        params = hold(optax.apply_updates(params, updates))
        state = map_points(hold, state, params)
        yield state, params


def assert_close(found, wanted):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        wanted,
    )


def test_both_points_are_those_of_optax():
    warm_up = optax.warmup_constant_schedule(0.0, 0.1, 3)
    reference = schedule_free_adamw(
        warm_up, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.02
    )
    for (state, params), (other, theirs) in zip(
        train(make()), train(reference), strict=True
    ):
        assert_close(params, theirs)
        wanted = schedule_free_eval_params(other, theirs)
        assert_close(evaluation_point(state, params), wanted)


def test_the_average_follows_the_papers_algorithm():
    """arXiv 2405.15682, algorithm 1, with decay, a slow part and a part without."""
    fields = {"undecayed": ("norm",), "rate_factors": (("^tower/", 0.5),)}
    names = ("tower", "kernel"), ("norm", "scale")
    for group, leaf in names:
        z = x = np.asarray(draw(0)[group][leaf], np.float64)
        second, weights = np.zeros_like(z), 0.0
        rows = train(make(**fields))
        for t, (gradient, (state, params)) in enumerate(
            zip(GRADIENTS, rows, strict=True), 1
        ):
            y = 0.1 * z + 0.9 * x
            g = np.asarray(gradient[group][leaf], np.float64)
            second = 0.95 * second + 0.05 * g**2
            step = g / (np.sqrt(second / (1 - 0.95**t)) + 1e-8)
            step += 0.02 * y if group == "tower" else 0.0
            rate = 0.1 * min(1.0, (t - 1) / 3)  # steps count from 0
            z = z - rate * (0.5 if group == "tower" else 1.0) * step
            largest = 0.1 * min(1.0, t / 3)  # the average is one step ahead
            weights += largest**2
            x = x + largest**2 / weights * (z - x)
            found = evaluation_point(state, params)[group][leaf]
            np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(
                params[group][leaf], 0.1 * z + 0.9 * x, rtol=1e-4, atol=1e-5
            )


def test_frozen_parameters_are_evaluated_as_they_are():
    *_, (state, params) = train(make(frozen=("^tower/", "^temperature$")))
    found, start = evaluation_point(state, params), draw(0)
    for point in (params, found):
        np.testing.assert_array_equal(
            point["tower"]["kernel"], start["tower"]["kernel"]
        )
        assert point["temperature"] == start["temperature"]
    assert np.all(found["norm"]["scale"] != params["norm"]["scale"])
    arrays = [x.shape for x in jax.tree.leaves(state) if x.shape]
    assert arrays == [(3,), (3,)]  # the second moment and z


def test_without_it_parameters_are_evaluated_as_they_are():
    *_, (state, params) = train(make(kind="lamb"))
    assert evaluation_point(state, params) is params
    assert map_points(lambda _: {}, state, params) == state


def test_a_temperature_at_its_floor_keeps_the_average_there(monkeypatch):
    for gradient in GRADIENTS:
        monkeypatch.setitem(gradient, "temperature", jnp.float32(1.0))
    floor = float(draw(0)["temperature"]) - 0.15

    def hold(params):
        return hold_temperature(params, floor)

    rows = [*train(make(), hold)]
    for state, params in rows:
        found = evaluation_point(state, params)
        assert float(found["temperature"]) >= floor - 1e-6
        assert float(params["temperature"]) >= floor
        assert float(state.z["temperature"]) >= floor
    assert float(rows[-1][1]["temperature"]) == pytest.approx(floor, abs=0.02)
    # With a frozen temperature there is nothing to hold.
    state, params = [*train(make(frozen=("^temperature$",)), hold)][-1]
    assert params["temperature"] == draw(0)["temperature"]


def test_new_values_are_the_start_of_all_points():
    optimizer = make(frozen=("^norm/",))
    state, new = optimizer.init(draw(0)), draw(9)
    state = map_points(lambda _: new, state, new)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        evaluation_point(state, new),
        new,
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay": "linear"}, "decay 'linear' and cooldown_steps 0; .* wanted 'const"),
        ({"cooldown_steps": 5}, "decay 'constant' and cooldown_steps 5"),
        ({"average_decay": 0.9}, "average_decay 0.9; it evaluates with its own"),
        ({"b1": 0.0}, "b1 0.0; wanted 0.01 or more"),
        ({"b1": 1e-9}, "b1 1e-09; wanted 0.01 or more"),
    ],
)
def test_fields_that_it_replaces_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        read_config(OptimizerConfig, KIND | fields)
