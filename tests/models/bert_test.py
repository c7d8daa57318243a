import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.bert import SIZES, Bert, BertConfig
from align_jax.models.layers import gelu

CONFIG = BertConfig(vocabulary_size=50, max_tokens=8, layers=2, hidden=64, dropout=0.0)
TOKENS = jnp.array([[2, 7, 8, 3, 0, 0, 0, 0], [2, 9, 3, 0, 0, 0, 0, 0]])
CORES = jnp.arange(1)


@pytest.fixture(scope="module")
def variables():
    create = jax.jit(Bert(CONFIG).init, static_argnums=3)
    return create(jax.random.key(0), TOKENS, CORES, False)


@jax.jit
def encode(variables, tokens):
    return Bert(CONFIG).apply(variables, tokens, CORES, False)


def test_padding_changes_nothing(variables):
    longer = encode(variables, TOKENS)
    shorter = encode(variables, TOKENS[:, :4])
    np.testing.assert_allclose(longer, shorter, rtol=1e-5, atol=1e-6)


def test_every_token_and_its_place_matter(variables):
    base, other, moved = (
        encode(variables, jnp.array([tokens]))
        for tokens in ([2, 7, 8, 3], [2, 7, 9, 3], [2, 8, 7, 3])
    )
    assert np.abs(base - other).max() > 1e-4
    assert np.abs(base - moved).max() > 1e-4


def test_output_is_normalised_and_gradients_reach_every_used_parameter(variables):
    out = encode(variables, TOKENS)
    np.testing.assert_allclose(out.mean(1), 0.0, atol=1e-5)
    np.testing.assert_allclose(out.std(1), 1.0, rtol=1e-3)

    weights = jax.random.normal(jax.random.key(5), out.shape)
    gradient = jax.grad(
        lambda p: (
            Bert(CONFIG).apply({"params": p}, TOKENS, CORES, True) * weights
        ).sum()
    )
    gradients = jax.jit(gradient)(variables["params"])
    flat = jax.tree_util.tree_leaves_with_path(gradients)
    dead = [jax.tree_util.keystr(path) for path, g in flat if not np.any(g)]
    assert not dead


def test_dropout_changes_training_only():
    config = BertConfig(vocabulary_size=50, max_tokens=8, layers=1, hidden=64)
    model = Bert(config)
    create = jax.jit(model.init, static_argnums=3)
    variables = create(jax.random.key(0), TOKENS, CORES, False)

    @functools.partial(jax.jit, static_argnums=1)
    def run(key, train):
        rngs = {"dropout": jax.random.key(key)}
        return model.apply(variables, TOKENS, CORES, train, rngs=rngs)

    np.testing.assert_array_equal(run(0, False), run(1, False))
    assert np.abs(run(0, True) - run(1, True)).max() > 1e-3
    np.testing.assert_array_equal(run(1, True), run(1, True))


def test_a_width_that_does_not_divide_into_heads_is_refused():
    with pytest.raises(ValueError, match="hidden is 100; it must be a multiple of 64"):
        BertConfig(vocabulary_size=10, max_tokens=8, hidden=100)


# Published numbers of parameters, including the pooler that ALIGN leaves out.
@pytest.mark.parametrize(
    ("name", "vocabulary", "millions"),
    [
        ("mini", 30_522, 11.17),
        ("small", 30_522, 28.76),
        ("medium", 30_522, 41.37),
        ("base", 30_522, 109.48224),
        ("large", 30_522, 335.1),
        ("large", 100_000, 406.3),
        ("large", 250_000, 559.9),
    ],
)
def test_published_sizes(name, vocabulary, millions):
    layers, hidden = SIZES[name]
    model = Bert(BertConfig(vocabulary, layers=layers, hidden=hidden))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, CORES, False))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    pooler = hidden * hidden + hidden
    digits = len(str(millions).partition(".")[2])
    assert round((count + pooler) / 1e6, digits) == millions


def test_position_rows_below_the_longest_text_are_refused():
    with pytest.raises(ValueError, match=r"positions is 7, below .*max_tokens, 8"):
        BertConfig(vocabulary_size=10, max_tokens=8, positions=7)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("fields", [{"rematerialise": True}, {"scan": True}])
def test_execution_changes_neither_result_nor_gradient(variables, train, fields):
    def gradient(**fields):
        model = Bert(dataclasses.replace(CONFIG, dropout=0.1, **fields))
        key = {"dropout": jax.random.key(3)}

        def score(params):
            out = model.apply({"params": params}, TOKENS, CORES, train, rngs=key)
            return jnp.square(out * jnp.arange(64.0)[None]).sum(), out

        return jax.jit(jax.grad(score, has_aux=True))(variables["params"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
        gradient(**fields),
        gradient(),
    )


@pytest.mark.parametrize(
    ("dtype", "limit"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)]
)
def test_gelu_is_the_exact_one(dtype, limit):
    x = jnp.linspace(-6.0, 6.0, 1001).astype(dtype)
    expected = jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(dtype)
    found, expected = (np.asarray(v, np.float64) for v in (gelu(x), expected))
    np.testing.assert_allclose(found, expected, rtol=limit, atol=1e-6)
