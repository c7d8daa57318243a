"""BERT text tower (arXiv 1810.04805); the features of a text are the output at [CLS].

ALIGN does not use the pooler on top of [CLS], so it is never built.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.config import LATE
from align_jax.devices.mesh import Placement
from align_jax.models.layers import (
    block_names,
    dropout,
    gathered,
    gelu,
    layer_norm,
    rows,
    run_equal_blocks,
)
from align_jax.ranges import Count, Positive, ProperShare, Range

HEAD_WIDTH = 64
POSITION_STD = 0.02  # standard deviation of initial position and token type embeddings
EPSILON = 1e-12  # of layer norms
TOKEN_TYPES = 2  # texts use type 0 only; BERT's checkpoints have both

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
      vocabulary_size: number of rows of the token embedding.
      max_tokens: length of the longest sequence, [CLS] and [SEP] included.
      positions: number of rows of the position embedding, at least max_tokens.
      layers: number of transformer blocks (base: 12; `SIZES` has all sizes).
      hidden: width (base: 768), a multiple of 64, the width of a head.
      dropout: dropout rate after the embeddings, and in each block after the attention
        and after the feed-forward layers.
      init_std: standard deviation of the normal distribution, truncated at two of them,
        from which word embeddings and dense layers start (BERT: 0.02, made for width
        768). Position and token type embeddings always start with BERT's 0.02.
      rematerialise: whether layers keep only their input for the backward pass, which
        then computes the rest again.
      scan: whether to compile the layers as one body; parameters and result are the
        same.
      kind: "bert".
    """

    # The contract of a tower, see `models.towers`.
    execution_fields: ClassVar[tuple[str, ...]] = ("scan", "rematerialise")
    form_fields: ClassVar[tuple[str, ...]] = ()
    module_options: ClassVar[tuple[str, ...]] = ()
    block_prefix: ClassVar[str] = "layer_"
    undecayed: ClassVar[tuple[str, ...]] = ()
    optional_modules: ClassVar[tuple[str, ...]] = ()
    freezing_field: ClassVar[str] = ""
    pad_token: ClassVar[int] = 0
    end_token: ClassVar[int | None] = None

    vocabulary_size: Count
    max_tokens: Annotated[int, Range(least=3)] = 64
    positions: Count = 512
    layers: Count = 12
    hidden: Count = 768
    dropout: ProperShare = 0.1
    init_std: Positive = 0.02
    rematerialise: bool = False
    scan: bool = False
    kind: str = dataclasses.field(default="bert", metadata=LATE)

    @property
    def output_width(self) -> int:
        """Width of the [CLS] output."""
        return self.hidden

    def block_names(self) -> list[str]:
        """Returns the names of the layers' parameters, in order."""
        return block_names(self.block_prefix, self.layers)

    def computed_once(self) -> Self:
        """Returns the same tower without rematerialisation and with `scan`."""
        return dataclasses.replace(self, rematerialise=False, scan=True)

    @classmethod
    def smallest(cls) -> Self:
        """Returns a tower of one layer and one head: 6 tokens, a vocabulary of 16."""
        return cls(vocabulary_size=16, max_tokens=6, positions=6, layers=1, hidden=64)

    def __post_init__(self) -> None:
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
      config: size of the encoder.
      dtype: number type of the computation; layer norms are float32.
    """

    config: BertConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        key: jax.Array | None,
        mask: jax.Array,
        core_ids: jax.Array | None,
    ) -> jax.Array:
        """Maps x (B, L, hidden) to the same shape.

        Args:
          x: (B, L, hidden) input.
          key: random key of the masks of dropout; None for no dropout.
          mask: (B, L) bool, false on padding, which is not attended to.
          core_ids: (V,) global indices of the batch's virtual cores; None if `key` is.
        """
        config = self.config
        keys = (None, None) if key is None else jax.random.split(key)
        init = nn.initializers.truncated_normal(config.init_std)
        dense = partial(nn.Dense, kernel_init=init, dtype=self.dtype)
        by_head = partial(nn.DenseGeneral, kernel_init=init, dtype=self.dtype)
        norm = partial(layer_norm, dtype=self.dtype, epsilon=EPSILON)
        heads = config.hidden // HEAD_WIDTH
        query, key, value = (
            by_head((heads, HEAD_WIDTH), name=name)(rows(x)).reshape(
                *x.shape[:2], heads, HEAD_WIDTH
            )
            for name in ("query", "key", "value")
        )  # (B, L, heads, 64)
        attended = jax.nn.dot_product_attention(
            query, key, value, mask=mask[:, None, None, :]
        )
        attended = by_head(config.hidden, axis=(-2, -1), name="attention_output")(
            rows(attended)
        ).reshape(x.shape)
        attended = dropout(attended, keys[0], core_ids, config.dropout)
        x = norm("attention_norm", x + attended)

        hidden = dense(4 * config.hidden, name="intermediate")(rows(x))
        hidden = jax.checkpoint(gelu)(hidden)  # recomputed in the backward pass
        hidden = dense(config.hidden, name="output")(hidden).reshape(x.shape)
        hidden = dropout(hidden, keys[1], core_ids, config.dropout)
        return norm("output_norm", x + hidden)


class Bert(nn.Module):
    """The text encoder.

    Attributes:
      config: size and regularisation.
      dtype: number type of the computation; parameters stay float32.
      placement: sharding by which each layer gathers its parameters; None if parameters
        are not sharded.
    """

    config: BertConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement | None = None

    @nn.compact
    def __call__(
        self, tokens: jax.Array, core_ids: jax.Array | None, train: bool
    ) -> jax.Array:
        """Encodes texts.

        Args:
          tokens: (B, L) token ids: [CLS] first, 0 as padding; L <= max_tokens.
          core_ids: (V,) global indices of the batch's virtual cores; None if not
            `train`.
          train: whether to apply dropout, with the random key named "dropout".

        Returns:
          (B, hidden) output at [CLS], float32.
        """
        config = self.config
        length = tokens.shape[1]
        init = nn.initializers.truncated_normal(config.init_std)
        # Positions and types, which all texts share, start small whatever init_std is.
        small = nn.initializers.truncated_normal(POSITION_STD)
        embed = partial(nn.Embed, features=config.hidden)
        words = embed(
            config.vocabulary_size, embedding_init=init, name="word_embeddings"
        )
        x = words(tokens)
        types = embed(TOKEN_TYPES, embedding_init=small, name="token_type_embeddings")
        x += types(jnp.zeros((), jnp.int32))[None, None]
        positions = embed(
            config.positions, embedding_init=small, name="position_embeddings"
        )
        x += positions(jnp.arange(length))[None]
        x = layer_norm("embeddings_norm", x, self.dtype, EPSILON)
        keys: Sequence[jax.Array | None] = [None] * (1 + config.layers)
        if train and config.dropout:
            keys = list(jax.random.split(self.make_rng("dropout"), len(keys)))
        *keys, first = keys
        x = dropout(x, first, core_ids, config.dropout)
        mask = tokens != config.pad_token
        layer = gathered(BertLayer, self)
        if config.rematerialise:
            layer = nn.remat(layer)
        make_layer = partial(layer, config, self.dtype)
        names = config.block_names()
        x = run_equal_blocks(self, names, make_layer, x, keys, mask, core_ids)
        return x[:, 0].astype(jnp.float32)
