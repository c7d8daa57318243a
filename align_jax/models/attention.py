"""Attention of given queries, keys and values, by XLA or by cuDNN."""

from typing import Literal, cast

import jax
import jax.numpy as jnp

from align_jax.errors import InputError, one_line

XLA, CUDNN = ATTENTIONS = ("xla", "cudnn")


def dot_product(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    causal: bool,
    implementation: str,
) -> jax.Array:
    """Computes softmax(Q K^T / sqrt(d)) V by head (arXiv 1706.03762, equation 1).

    Args:
      query: (B, Q, heads, d).
      key: (B, L, heads, d).
      value: (B, L, heads, d).
      mask: (B, L) bool, false on keys that are not attended to; None for none.
      causal: whether query i attends to the keys up to i only; then Q is L.
      implementation: one of `ATTENTIONS`.

    Returns:
      (B, Q, heads, d).

    Raises:
      InputError: the devices or the sizes do not suit cuDNN.
    """
    if implementation == XLA:
        return _dot_product(query, key, value, mask, causal, XLA)
    try:
        return dot_product_of_even(query, key, value, mask, causal, implementation)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"attention is {CUDNN!r}, and JAX says: {one_line(error)}; wanted {XLA!r}"
        ) from error


def dot_product_of_even(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    causal: bool,
    implementation: str,
) -> jax.Array:
    """Computes `dot_product` with one more query or key where their number is odd.

    JAX takes the derivative of cuDNN's attention for even numbers only, although cuDNN
    needs this only with a bias (seen in jax 0.10.2 and 0.12.0).
    """
    batch, queries, keys = len(query), query.shape[1], key.shape[1]
    odd_queries, odd_keys = queries % 2, keys % 2
    lengths: tuple[jax.Array, jax.Array] | None = None
    if odd_keys and mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, 1)))
    elif odd_keys and not causal:  # if causal, only the added query sees the added key
        lengths = jnp.full(batch, queries, jnp.int32), jnp.full(batch, keys, jnp.int32)
    query = _pad(query, odd_queries)
    key, value = _pad(key, odd_keys), _pad(value, odd_keys)
    found = _dot_product(query, key, value, mask, causal, implementation, lengths)
    return found[:, :queries]


def _pad(x: jax.Array, count: int) -> jax.Array:
    """Appends a count of zeros to the second axis of x (B, L, heads, d)."""
    return jnp.pad(x, ((0, 0), (0, count), (0, 0), (0, 0))) if count else x


def _dot_product(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    causal: bool,
    implementation: str,
    lengths: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Calls JAX's attention; `lengths` are numbers (B,) of true queries and keys."""
    query_lengths, key_lengths = lengths or (None, None)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if mask is None else mask[:, None, None, :],
        is_causal=causal,
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths,
        implementation=cast(Literal["xla", "cudnn"], implementation),
    )
