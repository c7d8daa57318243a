"""The dual encoder of ALIGN (arXiv 2102.05918, section 4.1).

An image's embedding is EfficientNet's pooled output; a text's is BERT's [CLS] output
through one linear layer to the image's width. Both are scaled to unit length.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from align_jax.models.bert import Bert, BertConfig
from align_jax.models.efficientnet import EfficientNet, EfficientNetConfig, pooled_width

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The towers and what joins them.

    Attributes:
      image_tower: EfficientNet's size.
      text_tower: BERT's size.
      embedding_size: width of a linear layer on the image tower; None for none, the
        paper's choice for B7 and L2 (its ablations set 640, 320, 160 or 80).
      temperature_init: first value of the learned softmax temperature.
      dtype: compute type, a key of `DTYPES`.
    """

    image_tower: EfficientNetConfig
    text_tower: BertConfig
    embedding_size: int | None = None
    temperature_init: float = 1.0
    dtype: str = "float32"


class DualEncoder(nn.Module):
    """Both towers and the learned temperature.

    Attributes:
      config: the towers and what joins them.
      batch_norm_group: images that share BatchNorm statistics in training.
    """

    config: ModelConfig
    batch_norm_group: int

    def setup(self):
        """Names the submodules, which name the parameters."""
        config = self.config
        dtype = DTYPES[config.dtype]
        self.image_tower = EfficientNet(
            config.image_tower, self.batch_norm_group, dtype
        )
        self.text_tower = Bert(config.text_tower, dtype)
        if config.embedding_size is not None:
            self.image_projection = nn.Dense(config.embedding_size)
        width = config.embedding_size or pooled_width(config.image_tower)
        self.text_projection = nn.Dense(width)
        self.temperature = self.param(
            "temperature", nn.initializers.constant(config.temperature_init), ()
        )

    def encode_images(
        self,
        images: jax.Array,
        core_ids: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Embeds images (B, H, W, 3) in [-1, 1] as unit vectors (B, D), float32.

        In training, core_ids (V,) is the global index of the batch's virtual cores.
        """
        features = self.image_tower(images, core_ids, train)
        if self.config.embedding_size is not None:
            features = self.image_projection(features)
        return unit_length(features)

    def encode_texts(
        self,
        tokens: jax.Array,
        core_ids: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Embeds token ids (B, L), 0 where padded, as unit vectors (B, D), float32.

        In training, core_ids (V,) is the global index of the batch's virtual cores.
        """
        return unit_length(
            self.text_projection(self.text_tower(tokens, core_ids, train))
        )

    def __call__(
        self, images: jax.Array, tokens: jax.Array, core_ids: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Embeds a batch of pairs; returns both embeddings and the temperature ()."""
        return (
            self.encode_images(images, core_ids, train),
            self.encode_texts(tokens, core_ids, train),
            self.temperature,
        )


def unit_length(x: jax.Array) -> jax.Array:
    """Scales rows of x (B, D) to unit Euclidean length; a row of zeros stays zero."""
    squared = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
