"""BERT text tower (arXiv 1810.04805), whose [CLS] output is the text's features.

The pooler on top of [CLS], which ALIGN leaves unused, is never built.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from align_jax.devices.mesh import Placement
from align_jax.models.layers import dropout, gathered, scan_blocks, split_batch

PAD_ID = 0
HEAD_WIDTH = 64
PLACE_STD = 0.02  # initial deviation of position and token type embeddings
TOKEN_TYPES = 2  # a text is of type 0 throughout; BERT's checkpoints have both

# Layers and hidden width of the published sizes.
SIZES = {
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Size and regularisation of a BERT encoder.

    Attributes:
      vocabulary_size: rows of the token embedding.
      max_tokens: longest sequence, [CLS] and [SEP] included.
      positions: rows of the position embedding, at least max_tokens.
      layers: transformer blocks (base: 12; `SIZES` has them all).
      hidden: width (base: 768), a multiple of 64, which is a head's width.
      dropout: rate after the embeddings and after each half block.
      init_std: standard deviation of initial words and dense layers (BERT: 0.02, made
        for width 768); positions and types always start with BERT's.
      rematerialise: layers keep only their input for the backward pass, which computes
        the rest again.
      scan: compile the layers as one body; same parameters, same result.
    """

    vocabulary_size: int
    max_tokens: int = 64
    positions: int = 512
    layers: int = 12
    hidden: int = 768
    dropout: float = 0.1
    init_std: float = 0.02
    rematerialise: bool = False
    scan: bool = False

    def __post_init__(self):
        if self.hidden % HEAD_WIDTH:
            raise ValueError(
                f"text_tower.hidden is {self.hidden}; it must be a multiple of"
                f" {HEAD_WIDTH}, the width of an attention head"
            )
        if self.positions < self.max_tokens:
            raise ValueError(
                f"text_tower.positions is {self.positions}, below"
                f" text_tower.max_tokens, {self.max_tokens}"
            )


class BertLayer(nn.Module):
    """One post-layer-norm transformer block.

    Attributes:
      config: the encoder's size.
      dtype: compute type; layer norms are float32.
    """

    config: BertConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        key: jax.Array | None,
        mask: jax.Array,
        core_ids: jax.Array,
    ) -> jax.Array:
        """Maps x (B, L, hidden) to the same shape; mask (B, L) is true on tokens.

        `key` draws the masks of dropout; None for none.
        """
        config = self.config
        keys = (None, None) if key is None else jax.random.split(key)
        init = nn.initializers.truncated_normal(config.init_std)
        dense = dict(kernel_init=init, dtype=self.dtype)
        heads = config.hidden // HEAD_WIDTH
        query, key, value = (
            nn.DenseGeneral((heads, HEAD_WIDTH), name=name, **dense)(x)
            for name in ("query", "key", "value")
        )  # (B, L, heads, 64)
        attended = jax.nn.dot_product_attention(
            query, key, value, mask=mask[:, None, None, :]
        )
        attended = nn.DenseGeneral(
            config.hidden, axis=(-2, -1), name="attention_output", **dense
        )(attended)
        attended = dropout(attended, keys[0], core_ids, config.dropout)
        x = layer_norm("attention_norm", x + attended, self.dtype)

        hidden = nn.Dense(4 * config.hidden, name="intermediate", **dense)(x)
        hidden = jax.checkpoint(gelu)(hidden)  # again in the backward pass: not kept
        hidden = nn.Dense(config.hidden, name="output", **dense)(hidden)
        hidden = dropout(hidden, keys[1], core_ids, config.dropout)
        return layer_norm("output_norm", x + hidden, self.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """Gaussian error linear unit in float32 (arXiv 1606.08415).

    By the error function, as BERT has it: by its complement, as `jax.nn.gelu` has it,
    it is twice the work.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def layer_norm(name: str, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Layer normalisation in float32 with BERT's epsilon, cast to `dtype`."""
    norm = nn.LayerNorm(epsilon=1e-12, use_fast_variance=False, name=name)
    return norm(x.astype(jnp.float32)).astype(dtype)


class Bert(nn.Module):
    """The text encoder.

    Attributes:
      config: size and regularisation.
      dtype: compute type; parameters stay float32.
      placement: gathers a layer's parameters where they are used; None where they are
        whole.
    """

    config: BertConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement | None = None

    @nn.compact
    def __call__(
        self, tokens: jax.Array, core_ids: jax.Array, train: bool
    ) -> jax.Array:
        """Encodes texts.

        Args:
          tokens: (B, L) token ids, [CLS] first, 0 where padded; L <= max_tokens.
          core_ids: (V,) global index of the batch's virtual cores.
          train: dropout if true.

        Returns:
          (B, hidden) output at [CLS], float32.
        """
        config = self.config
        length = tokens.shape[1]
        init = nn.initializers.truncated_normal(config.init_std)
        embed = dict(features=config.hidden, embedding_init=init)
        x = nn.Embed(config.vocabulary_size, name="word_embeddings", **embed)(tokens)
        # What all texts share stays small beside the words, whatever init_std is.
        embed["embedding_init"] = nn.initializers.truncated_normal(PLACE_STD)
        types = nn.Embed(TOKEN_TYPES, name="token_type_embeddings", **embed)
        x += types(jnp.zeros((), jnp.int32))
        positions = nn.Embed(config.positions, name="position_embeddings", **embed)
        x += positions(jnp.arange(length))
        x = layer_norm("embeddings_norm", x, self.dtype)
        keys = [None] * (1 + config.layers)
        if train and config.dropout:
            keys = list(jax.random.split(self.make_rng("dropout"), len(keys)))
        x = dropout(x, keys.pop(), core_ids, config.dropout)
        mask = tokens != PAD_ID
        layer = gathered(BertLayer, self)
        if config.rematerialise:
            layer = nn.remat(layer)
        names = [f"layer_{index:02}" for index in range(config.layers)]
        if config.scan and not self.is_initializing():
            body = layer(config, self.dtype, parent=None)

            def run_layer(variables, x, key):
                return body.apply(variables, x, key, mask, core_ids), {}

            x = scan_blocks(self, names, run_layer, x, keys)
            return x[:, 0].astype(jnp.float32)
        for name, key in zip(names, keys, strict=True):
            x = layer(config, self.dtype, name=name)(x, key, mask, core_ids)
            x = split_batch(x, self)
        return x[:, 0].astype(jnp.float32)
