"""An image tower with a linear head, for transfer (arXiv 2102.05918, section 5.3)."""

import dataclasses

import flax.linen as nn
import jax

from align_jax.models.dual_encoder import DTYPES, ImageModel, unit_length
from align_jax.models.efficientnet import EfficientNetConfig
from align_jax.models.layers import dropout


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """The tower and its head.

    Attributes:
      image_tower: EfficientNet's size.
      classes: how many.
      dropout: rate before the head.
      dtype: compute type of the tower, a key of `DTYPES`.
    """

    image_tower: EfficientNetConfig
    classes: int
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        if self.classes < 2:
            raise ValueError(f"model.classes is {self.classes}; wanted 2 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}; wanted 0 to below 1")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"model.dtype is {self.dtype!r}; known: {', '.join(DTYPES)}"
            )


class Classifier(ImageModel):
    """The tower and a head that starts at zero.

    Attributes:
      config: sizes.
    """

    config: ClassifierConfig

    inputs = ("images",)
    towers = ("image_tower",)

    def setup(self):
        """Names the submodules, which name the parameters."""
        super().setup()
        self.head = nn.Dense(self.config.classes, kernel_init=nn.initializers.zeros)

    def encode_images(self, images: jax.Array) -> jax.Array:
        """The features, scaled to unit length."""
        return unit_length(self.image_features(images))

    def classify_images(self, images: jax.Array) -> jax.Array:
        """Logits (B, K) of images (B, H, W, 3), float32."""
        return self.head(self.image_features(images))

    def __call__(
        self, images: jax.Array, core_ids: jax.Array, train: bool
    ) -> tuple[jax.Array]:
        """Logits of a batch, (B, K)."""
        features = self.image_features(images, core_ids, train)
        if train and self.config.dropout:
            key = self.make_rng("dropout")
            features = dropout(features, key, core_ids, self.config.dropout)
        return (self.head(features),)
