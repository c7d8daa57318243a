"""SigLIP's pooling: attention of one learned query over a tower's tokens."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.models.block import BlockShape, attend, feed_forward
from align_jax.models.layers import layer_norm


class AttentionPool(nn.Module):
    """Attention of one learned query over tokens, with an MLP.

    It is the multihead attention pooling of Scaling Vision Transformers (arXiv
    2106.04560, section 3).

    Attributes:
      shape: size and form of the attention and the MLP.
      dtype: number type of the computation; the layer norm is float32.
    """

    shape: BlockShape
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens x (B, L, W) to features (B, W)."""
        shape = dataclasses.replace(self.shape, qk_norm=False)
        start = nn.initializers.xavier_uniform()
        probe = self.param("probe", start, (1, shape.width)).astype(self.dtype)
        queries = jnp.broadcast_to(probe[None], (x.shape[0], *probe.shape))
        y = attend(shape, queries, x, self.dtype)  # (B, 1, W)
        normed = layer_norm("norm", y, self.dtype, shape.norm_epsilon)
        return (y + feed_forward(shape, normed, self.dtype))[:, 0]
