"""Attention of given queries, keys and values, by XLA or by cuDNN."""

from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp

from align_jax.errors import InputError, one_line

XLA, CUDNN = ATTENTIONS = ("xla", "cudnn")


class Operands(NamedTuple):
    """Operands of JAX's attention.

    Attributes:
      query: (B, Q, heads, d).
      key: (B, L, heads, d).
      value: (B, L, heads, d).
      mask: (B, 1, Q or 1, L) bool, false on keys that are not attended to, or None.
      query_lengths: (B,) int32 numbers of the queries that count; None for all.
      key_lengths: (B,) int32 numbers of the keys that count; None for all.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    mask: jax.Array | None
    query_lengths: jax.Array | None = None
    key_lengths: jax.Array | None = None


def dot_product(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    *,
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
    if mask is not None:
        mask = mask[:, None, None, :]  # (B, 1, 1, L)
    operands = Operands(query, key, value, mask)
    if implementation == CUDNN:
        operands = _suit_cudnn(operands, causal)
    try:
        found = jax.nn.dot_product_attention(
            operands.query,
            operands.key,
            operands.value,
            mask=operands.mask,
            is_causal=causal,
            query_seq_lengths=operands.query_lengths,
            key_value_seq_lengths=operands.key_lengths,
            implementation=cast(Literal["xla", "cudnn"], implementation),
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if implementation != CUDNN:
            raise
        raise InputError(
            f"attention is {CUDNN!r}, and JAX says: {one_line(error)}; wanted {XLA!r}"
        ) from error
    return found[:, : query.shape[1]]


def _suit_cudnn(operands: Operands, causal: bool) -> Operands:
    """Repeats the mask for each query, and makes odd numbers of queries and keys even.

    For cuDNN, JAX refuses masks without an axis of queries, and derivatives if a number
    is odd (seen in jax 0.10.2 and 0.12.0). cuDNN itself refuses odd numbers with masks
    only. No query attends to an added key, except an added query.
    """
    query, key, value, mask = operands[:4]
    (batch, queries), keys = query.shape[:2], key.shape[1]
    odd = keys % 2
    lengths: tuple[jax.Array | None, jax.Array | None] = (None, None)
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, odd)))
        mask = jnp.broadcast_to(mask, (batch, 1, queries + queries % 2, keys + odd))
    elif odd and not causal:
        lengths = jnp.full(batch, queries, jnp.int32), jnp.full(batch, keys, jnp.int32)
    key, value = _pad(key, odd), _pad(value, odd)
    return Operands(_pad(query, queries % 2), key, value, mask, *lengths)


def _pad(x: jax.Array, count: int) -> jax.Array:
    """Appends a count of zeros to the second axis of x (B, L, heads, d)."""
    return jnp.pad(x, ((0, 0), (0, count), (0, 0), (0, 0))) if count else x
