"""Attention with one more query or key is the attention without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models.attention import XLA, dot_product, dot_product_of_even

MASK = jnp.array([[True, True, True, False, False], [True] * 5])


@pytest.mark.parametrize(
    ("queries", "keys", "mask", "causal"),
    [
        (5, 5, None, False),
        (5, 5, None, True),
        (5, 5, MASK, False),
        (5, 5, MASK, True),
        (1, 4, None, False),
        (4, 5, None, False),
        (4, 4, None, True),
    ],
)
def test_odd_numbers_are_made_even_and_nothing_else(
    queries, keys, mask, causal, monkeypatch
):
    random = jax.random.split(jax.random.key(0), 4)
    sizes = queries, keys, keys, queries
    query, key, value, weights = (
        jax.random.normal(r, (2, n, 2, 8)) for r, n in zip(random, sizes, strict=True)
    )
    seen, attend = [], jax.nn.dot_product_attention

    def see(query, key, value, **options):
        seen.append((query.shape[1], key.shape[1], value.shape[1]))
        return attend(query, key, value, **options)

    def run(attention):
        def score(arrays):
            out = attention(*arrays, mask, causal, XLA)
            return (weights * out).sum(), out

        return jax.value_and_grad(score, has_aux=True)((query, key, value))

    expected = run(dot_product)
    monkeypatch.setattr(jax.nn, "dot_product_attention", see)
    found = run(dot_product_of_even)
    even = queries + queries % 2, keys + keys % 2
    assert seen == [(*even, even[1])]
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
