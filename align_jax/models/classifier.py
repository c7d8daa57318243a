"""An image tower with a linear head, for transfer (arXiv 2102.05918, section 5.3)."""

import dataclasses
from typing import Annotated, Self

import flax.linen as nn
import jax

from align_jax.config import LATE, READER, check_choices
from align_jax.devices.kernel_choice import Kernels
from align_jax.devices.mesh import Placement
from align_jax.models.dual_encoder import (
    DTYPES,
    HALVES,
    ImageModel,
    PixelMean,
    PixelStd,
    unit_length,
)
from align_jax.models.layers import dropout
from align_jax.models.towers import ImageTowerConfig, TowerConfig, read_image_tower
from align_jax.ranges import ProperShare, Range


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """An image tower and its head.

    Attributes:
      image_tower: config of the tower; its field `kind` is a key of `IMAGE_TOWERS`.
      classes: number of classes K.
      dropout: dropout rate before the head.
      dtype: number type of the tower's computation, a key of `DTYPES`.
      pixel_mean: mean of the pixels' scale, see `ModelConfig`.
      pixel_std: deviation of the pixels' scale, see `ModelConfig`.
    """

    image_tower: ImageTowerConfig = dataclasses.field(
        metadata={READER: read_image_tower}
    )
    classes: Annotated[int, Range(least=2)]
    dropout: ProperShare = 0.0
    dtype: str = "float32"
    pixel_mean: PixelMean = dataclasses.field(default=HALVES, metadata=LATE)
    pixel_std: PixelStd = dataclasses.field(default=HALVES, metadata=LATE)

    def __post_init__(self) -> None:
        check_choices(self, {"dtype": DTYPES}, "model.")

    @property
    def towers(self) -> dict[str, TowerConfig]:
        """The tower's config by its name."""
        return {"image_tower": self.image_tower}

    def computed_once(self) -> Self:
        """Returns the same model with nothing computed twice, see `TowerConfig`."""
        return dataclasses.replace(self, image_tower=self.image_tower.computed_once())

    def build(
        self,
        batch_norm_group: int = 1,
        placement: Placement | None = None,
        kernels: Kernels | None = None,
    ) -> "Classifier":
        """Builds the model, see `ImageModel`; without `kernels` it uses XLA."""
        return Classifier(self, batch_norm_group, placement, kernels or Kernels())


class Classifier(ImageModel):
    """An image tower and a linear head that starts at zero.

    Attributes:
      config: sizes of the tower and the head.
    """

    config: ClassifierConfig

    inputs = ("images",)  # arrays of a batch that `__call__` takes

    def setup(self) -> None:
        """Creates the submodules, whose names are those of the parameters."""
        super().setup()
        self.head = nn.Dense(self.config.classes, kernel_init=nn.initializers.zeros)

    def encode_images(self, images: jax.Array) -> jax.Array:
        """Returns the image tower's features (B, W), float32, scaled to unit length.

        The images are those of `image_features`, here and in the other methods.
        """
        return unit_length(self.image_features(images))

    def classify_images(self, images: jax.Array) -> jax.Array:
        """Returns the logits (B, K) of images (B, H, W, 3), float32."""
        return self.head(self.image_features(images))

    def __call__(
        self, images: jax.Array, core_ids: jax.Array, train: bool
    ) -> tuple[jax.Array]:
        """Returns the logits (B, K) of a batch, as the only item of a tuple.

        In training, dropout is applied before the head; `core_ids` (V,) are the global
        indices of the batch's virtual cores.
        """
        features = self.image_features(images, core_ids, train)
        if train and self.config.dropout:
            key = self.make_rng("dropout")
            features = dropout(features, key, core_ids, self.config.dropout)
        return (self.head(features),)
