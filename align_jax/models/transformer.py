"""Transformer text tower of CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343).

The output is the feature of one token, or their mean, before any projection.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.config import LATE, check_choices
from align_jax.devices.mesh import Placement
from align_jax.models.attention import XLA
from align_jax.models.block import (
    EXECUTION_FIELDS,
    PREFIX,
    BlockShape,
    Deviations,
    Randomness,
    check_blocks,
    run_blocks,
)
from align_jax.models.layers import block_names, dropout, layer_norm
from align_jax.ranges import Count, Natural, Positive, ProperShare, Range

# Width, layers, heads and MLP width of published text towers: CLIP's (arXiv 2103.00020,
# table 20), OpenCLIP's of H and bigG (https://github.com/mlfoundations/open_clip), and
# SigLIP's (arXiv 2303.15343), which are as large as the image towers of `vit.SIZES`.
SIZES = {
    "clip_b": (512, 12, 8, 2048),
    "clip_l": (768, 12, 12, 3072),
    "clip_h": (1024, 24, 16, 4096),
    "clip_G": (1280, 32, 20, 5120),
    "siglip_b": (768, 12, 12, 3072),
    "siglip_l": (1024, 24, 16, 4096),
    "siglip_so400m": (1152, 27, 16, 4304),
}

POOLINGS = ("end", "last", "mean", "first")
# Standard deviations of the first word and position embeddings (CLIP's published code).
WORD_STD, POSITION_STD = 0.02, 0.01


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Size, regularisation and execution of a text transformer.

    `SIZES` has published sizes. CLIP's tower is causal and takes the output at the end
    of the text; SigLIP's has causal = False, mask_padding = False and pooling "last".

    Attributes:
      vocabulary_size: number of rows of the token embedding.
      max_tokens: length of the longest sequence, special tokens included.
      positions: number of rows of the position embedding, at least max_tokens.
      width: width of the tokens (CLIP B: 512), a multiple of `heads`.
      layers: number of transformer blocks (CLIP B: 12).
      heads: number of attention heads (CLIP B: 8).
      mlp_width: width between the two layers of an MLP (CLIP B: 2048).
      causal: whether a token attends to itself and earlier tokens only.
      pooling: token whose output is taken: the first `end_token`, or the last token of
        a text without one ("end"); the last token, padding or not ("last"); the first
        one ("first"); or the mean over all tokens that are no padding ("mean").
      end_token: id of the token that ends a text; None only without pooling "end".
      pad_token: id of padding. Only those at the end of a sequence are padding, and if
        `end_token` is the same id, the first of them is the end of the text.
      mask_padding: whether padding is not attended to.
      activation: "gelu", "gelu_tanh" (SigLIP) or "quick_gelu" (OpenAI's CLIP).
      norm_epsilon: number that layer norms add to the variance (CLIP: 1e-5, SigLIP:
        1e-6).
      dropout: dropout rate after the embeddings, and in each block after the attention
        and after the MLP.
      scan: whether to compile the blocks as one body; parameters and result are the
        same.
      rematerialise: "none", or "blocks" to keep only each block's input for the
        backward pass, which computes the rest again.
      kind: "transformer".
      attention: "xla", or "cudnn" for cuDNN's flash attention on NVIDIA GPUs, in
        bfloat16.
    """

    # The contract of a tower, see `models.towers`.
    execution_fields: ClassVar[tuple[str, ...]] = EXECUTION_FIELDS
    form_fields: ClassVar[tuple[str, ...]] = (
        "causal",
        "pooling",
        "end_token",
        "mask_padding",
        "activation",
        "norm_epsilon",
    )
    module_options: ClassVar[tuple[str, ...]] = ()
    block_prefix: ClassVar[str] = PREFIX
    # Gains and biases (CLIP, section 2.5), and positions as in image towers.
    undecayed: ClassVar[tuple[str, ...]] = (
        ".*norm/scale$",
        ".*bias$",
        "position_embeddings/",
    )
    optional_modules: ClassVar[tuple[str, ...]] = ()
    freezing_field: ClassVar[str] = ""

    vocabulary_size: Count
    max_tokens: Annotated[int, Range(least=3)] = 64
    positions: Count = 77
    width: Count = 512
    layers: Annotated[int, Range(least=1, most=99)] = 12
    heads: Count = 8
    mlp_width: Count = 2048
    causal: bool = True
    pooling: str = "end"
    end_token: Natural | None = None
    pad_token: Natural = 0
    mask_padding: bool = True
    activation: str = "gelu"
    norm_epsilon: Positive = 1e-5
    dropout: ProperShare = 0.0
    scan: bool = False
    rematerialise: str = "none"
    kind: str = "transformer"
    attention: str = dataclasses.field(default=XLA, metadata=LATE)

    @property
    def output_width(self) -> int:
        """Width of the features."""
        return self.width

    @property
    def block_shape(self) -> BlockShape:
        """Size and form of a block; it starts as CLIP's (section 2.4, as published)."""
        attention = self.width**-0.5
        deviations = Deviations(
            attention=attention,
            intermediate=(2 * self.width) ** -0.5,
            output=attention * (2 * self.layers) ** -0.5,
        )
        return BlockShape(
            width=self.width,
            heads=self.heads,
            mlp_width=self.mlp_width,
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            attention=self.attention,
            causal=self.causal,
            dropout=self.dropout,
            deviations=deviations,
        )

    def block_names(self) -> list[str]:
        """Returns the names of the blocks' parameters, in order."""
        return block_names(self.block_prefix, self.layers)

    def computed_once(self) -> Self:
        """Returns the same tower without rematerialisation, scanned, by XLA."""
        return dataclasses.replace(self, rematerialise="none", scan=True, attention=XLA)

    @classmethod
    def smallest(cls) -> Self:
        """Returns a tower of one block and two heads: 6 tokens, a vocabulary of 16."""
        return cls(
            vocabulary_size=16,
            max_tokens=6,
            positions=6,
            width=16,
            layers=1,
            heads=2,
            mlp_width=24,
            end_token=3,
            dropout=0.1,
        )

    def __post_init__(self) -> None:
        check_choices(self, {"pooling": POOLINGS}, "text_tower.")
        check_blocks(self, "text_tower.")
        if self.positions < self.max_tokens:
            raise ValueError(
                f"text_tower.positions is {self.positions}, below"
                f" text_tower.max_tokens, {self.max_tokens}"
            )
        if self.pooling == "end" and self.end_token is None:
            raise ValueError(
                "text_tower.pooling is 'end' and text_tower.end_token None; wanted the"
                " id of the token that ends a text"
            )
        for name in ("end_token", "pad_token"):
            if (token := getattr(self, name) or 0) >= self.vocabulary_size:
                raise ValueError(
                    f"text_tower.{name} is {token}; wanted an id below"
                    f" text_tower.vocabulary_size, {self.vocabulary_size}"
                )


class Transformer(nn.Module):
    """The text encoder.

    Attributes:
      config: size, regularisation and execution.
      dtype: number type of the computation; parameters stay float32.
      placement: sharding by which each block gathers its parameters; None if parameters
        are not sharded.
    """

    config: TransformerConfig
    dtype: Any = jnp.float32
    placement: Placement | None = None

    @nn.compact
    def __call__(
        self, tokens: jax.Array, core_ids: jax.Array | None, train: bool
    ) -> jax.Array:
        """Encodes texts.

        Args:
          tokens: (B, L) token ids, padded with `pad_token`; L <= max_tokens.
          core_ids: (V,) global indices of the batch's virtual cores; None if not
            `train`.
          train: whether to apply dropout, with the random key named "dropout".

        Returns:
          (B, width) output of the tokens that `pooling` names, float32.
        """
        config, normal = self.config, nn.initializers.normal
        words = nn.Embed(
            config.vocabulary_size,
            config.width,
            embedding_init=normal(WORD_STD),
            name="word_embeddings",
        )
        positions = nn.Embed(
            config.positions,
            config.width,
            embedding_init=normal(POSITION_STD),
            name="position_embeddings",
        )
        x = words(tokens) + positions(jnp.arange(tokens.shape[1]))[None]
        x = x.astype(self.dtype)  # (B, L, W)
        randomness = [Randomness()] * config.layers
        if train and config.dropout:
            first, *keys = jax.random.split(self.make_rng("dropout"), 1 + config.layers)
            x = dropout(x, first, core_ids, config.dropout)
            randomness = [Randomness(key=key) for key in keys]
        real = find_tokens(tokens, config)
        x = run_blocks(
            self,
            config.block_shape,
            x,
            randomness,
            core_ids=core_ids,
            mask=real if config.mask_padding else None,
        )
        x = layer_norm("final_norm", x, self.dtype, config.norm_epsilon)
        return _pool(x.astype(jnp.float32), tokens, real, config)


def find_tokens(tokens: jax.Array, config: TransformerConfig) -> jax.Array:
    """Returns a mask (B, L), true on tokens (B, L) that are no padding.

    The first token of a text is never padding.
    """
    indices = jnp.arange(tokens.shape[1])[None]
    is_text = tokens != config.pad_token
    lengths = jnp.where(is_text, indices + 1, 0).max(1, keepdims=True)
    ends = int(config.end_token == config.pad_token)
    return indices < jnp.maximum(lengths + ends, 1)


def _pool(
    x: jax.Array, tokens: jax.Array, real: jax.Array, config: TransformerConfig
) -> jax.Array:
    """Pools x (B, L, W) to (B, W); `real` (B, L) is the mask of `find_tokens`."""
    if config.pooling == "first":
        return x[:, 0]
    if config.pooling == "last":
        return x[:, -1]
    if config.pooling == "mean":
        total = jnp.where(real[:, :, None], x, 0.0).sum(1)
        return total / real.sum(1, keepdims=True, dtype=jnp.float32)
    last = tokens.shape[1] - 1
    indices = jnp.arange(last + 1, dtype=jnp.int32)[None]
    first = jnp.where(tokens == config.end_token, indices, last).min(1, keepdims=True)
    return jnp.where((indices == first)[:, :, None], x, 0.0).sum(1)
