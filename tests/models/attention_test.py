"""Operands for cuDNN have even numbers and a mask for each query."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.models import attention

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
def test_odd_numbers_are_made_even_and_masks_are_whole(
    queries, keys, mask, causal, monkeypatch
):
    random = jax.random.split(jax.random.key(0), 4)
    sizes = queries, keys, keys, queries
    query, key, value, weights = (
        jax.random.normal(r, (2, n, 2, 8)) for r, n in zip(random, sizes, strict=True)
    )
    seen, attend = [], jax.nn.dot_product_attention

    def see(query, key, value, *, mask, **options):
        assert key.shape == value.shape
        seen.append(
            (query.shape[1], key.shape[1], None if mask is None else mask.shape)
        )
        return attend(query, key, value, mask=mask, **options)

    def score(arrays):
        out = attention.dot_product(
            *arrays, mask, causal=causal, implementation=attention.XLA
        )
        return (weights * out).sum(), out

    run = jax.value_and_grad(score, has_aux=True)
    expected = run((query, key, value))
    monkeypatch.setattr(jax.nn, "dot_product_attention", see)
    monkeypatch.setattr(attention, "CUDNN", attention.XLA)  # as no CPU has cuDNN
    found = run((query, key, value))
    even = queries + queries % 2, keys + keys % 2
    assert seen == [(*even, None if mask is None else (2, 1, *even))]
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
