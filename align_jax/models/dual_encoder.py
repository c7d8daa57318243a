"""The dual encoder of ALIGN (arXiv 2102.05918, section 4.1).

An image's embedding is the output of the image tower (in the paper, EfficientNet's
pooled features). A text's embedding is the output of the text tower (BERT's at [CLS])
after one linear layer to the image's width. Both are scaled to unit length.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from align_jax.config import LATE, READER, check_choices
from align_jax.devices.kernel_choice import Kernels
from align_jax.devices.mesh import Placement
from align_jax.models.towers import (
    ImageTowerConfig,
    TextTowerConfig,
    Tower,
    TowerConfig,
    build_tower,
    read_image_tower,
    read_text_tower,
)
from align_jax.ranges import Count, Positive, Share

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
TEMPERATURE_FORMS = ("direct", "log")
# Red, green and blue, where black is 0 and white is 1.
PixelMean = tuple[Share, Share, Share]
PixelStd = tuple[Positive, Positive, Positive]
HALVES = (0.5, 0.5, 0.5)  # as mean and as deviation: pixels in [-1, 1]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The two towers and the parts that join them.

    Attributes:
      image_tower: config of the image tower; its field `kind` is a key of
        `IMAGE_TOWERS`.
      text_tower: config of the text tower; its field `kind` is a key of `TEXT_TOWERS`.
      embedding_size: width of a linear layer on the image tower; None for no layer,
        ALIGN's choice for B7 and L2 (its ablations set 640, 320, 160 or 80).
      embedding_prefix: number of the image tower's first outputs that make up the
        embedding; None for all. Only without `embedding_size`.
      temperature_init: initial temperature, which divides the cosines.
      temperature_form: parameter that is learned: the temperature ("direct", as in
        ALIGN's paper) or the logarithm of the temperature ("log").
      logit_bias_init: initial value of a bias added to the logits, for the sigmoid
        loss; None for no bias.
      dtype: number type of the computation, a key of `DTYPES`.
      projection_bias: whether the linear layers on the towers have a bias (CLIP: no).
      pixel_mean: red, green and blue that are subtracted from pixels, from 0 (black) to
        1 (white); see `scale_pixels`.
      pixel_std: red, green and blue that then divide the pixels. By default the image
        tower takes pixels in [-1, 1].
    """

    image_tower: ImageTowerConfig = dataclasses.field(
        metadata={READER: read_image_tower}
    )
    text_tower: TextTowerConfig = dataclasses.field(metadata={READER: read_text_tower})
    embedding_size: Count | None = None
    temperature_init: Positive = 1.0
    temperature_form: str = "direct"
    logit_bias_init: float | None = None
    dtype: str = "float32"
    embedding_prefix: Count | None = dataclasses.field(default=None, metadata=LATE)
    projection_bias: bool = dataclasses.field(default=True, metadata=LATE)
    pixel_mean: PixelMean = dataclasses.field(default=HALVES, metadata=LATE)
    pixel_std: PixelStd = dataclasses.field(default=HALVES, metadata=LATE)

    def __post_init__(self) -> None:
        choices = {"temperature_form": TEMPERATURE_FORMS, "dtype": DTYPES}
        check_choices(self, choices, "model.")
        prefix, outputs = self.embedding_prefix, self.image_tower.output_width
        if prefix is not None and (self.embedding_size or prefix > outputs):
            raise ValueError(
                f"model.embedding_prefix is {prefix} and embedding_size"
                f" {self.embedding_size}; wanted at most the image tower's {outputs}"
                " outputs, and embedding_size None"
            )

    @property
    def towers(self) -> dict[str, TowerConfig]:
        """Towers' configs by name, in the order of `DualEncoder`'s embeddings."""
        return {"image_tower": self.image_tower, "text_tower": self.text_tower}

    @property
    def width(self) -> int:
        """Width D of the embeddings."""
        outputs = self.embedding_prefix or self.image_tower.output_width
        return self.embedding_size or outputs

    def computed_once(self) -> Self:
        """Returns the same model with nothing computed twice, see `TowerConfig`."""
        return dataclasses.replace(
            self,
            image_tower=self.image_tower.computed_once(),
            text_tower=self.text_tower.computed_once(),
        )

    def build(
        self,
        batch_norm_group: int = 1,
        placement: Placement | None = None,
        kernels: Kernels | None = None,
    ) -> "DualEncoder":
        """Builds the model, see `ImageModel`; without `kernels` it uses XLA."""
        return DualEncoder(self, batch_norm_group, placement, kernels or Kernels())


class ImageModel(nn.Module):
    """A model with an image tower.

    Attributes:
      config: config of the model, with the fields `image_tower`, `dtype`, `pixel_mean`
        and `pixel_std`.
      batch_norm_group: number of images that share BatchNorm statistics in training.
      placement: sharding by which blocks gather their parameters; None if parameters
        are not sharded.
      kernels: choice between Pallas kernels and XLA.
    """

    config: Any
    batch_norm_group: int
    placement: Placement | None = None
    kernels: Kernels = Kernels()

    def setup(self) -> None:
        """Creates the image tower; its parameters are under "image_tower"."""
        self.image_tower = self.build_tower("image_tower", self.config.image_tower)

    @nn.nowrap
    def build_tower(self, name: str, config: TowerConfig) -> Tower:
        """Builds a tower with the model's number type, sharding, groups and kernels.

        Args:
          name: a key of `TOWERS`, under which the tower's parameters are.
          config: the tower's config.
        """
        return build_tower(
            name,
            config,
            dtype=DTYPES[self.config.dtype],
            placement=self.placement,
            batch_norm_group=self.batch_norm_group,
            kernels=self.kernels,
        )

    def image_features(
        self,
        images: jax.Array,
        core_ids: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns the image tower's output (B, W), before any projection, float32.

        Images (B, H, W, 3) are uint8 levels, or floats that are scaled already, see
        `scale_pixels`. In training, core_ids (V,) are the global indices of the batch's
        virtual cores.
        """
        config = self.config
        pixels = scale_pixels(images, config.pixel_mean, config.pixel_std)
        return self.image_tower(pixels, core_ids, train)


class DualEncoder(ImageModel):
    """The two towers, their projections and the scalars of the logits.

    Attributes:
      config: the two towers and the parts that join them.
    """

    config: ModelConfig

    inputs = ("images", "tokens")  # arrays of a batch that `__call__` takes

    def setup(self) -> None:
        """Creates the submodules, whose names are those of the parameters."""
        super().setup()
        config = self.config
        self.text_tower = self.build_tower("text_tower", config.text_tower)
        if config.embedding_size is not None:
            self.image_projection = nn.Dense(
                config.embedding_size, use_bias=config.projection_bias
            )
        self.text_projection = nn.Dense(config.width, use_bias=config.projection_bias)
        scalars = {"temperature": config.temperature_init}
        if config.temperature_form == "log":
            scalars = {"log_temperature": math.log(config.temperature_init)}
        if config.logit_bias_init is not None:
            scalars["logit_bias"] = config.logit_bias_init
        for name, value in scalars.items():
            self.param(name, nn.initializers.constant(value), ())

    def encode_images(
        self,
        images: jax.Array,
        core_ids: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Embeds images (B, H, W, 3) as unit vectors (B, D), float32.

        Images are uint8 levels, or scaled floats, see `scale_pixels`. In training,
        core_ids (V,) are the global indices of the batch's virtual cores.
        """
        features = self.image_features(images, core_ids, train)
        if self.config.embedding_size is not None:
            features = self.image_projection(features)
        return unit_length(features[:, : self.config.width])

    def encode_texts(
        self,
        tokens: jax.Array,
        core_ids: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Embeds token ids (B, L) as unit vectors (B, D), float32.

        Texts are padded with the text tower's `pad_token`. In training, core_ids (V,)
        are the global indices of the batch's virtual cores.
        """
        return unit_length(self.project_texts(tokens, core_ids, train))

    def project_texts(
        self,
        tokens: jax.Array,
        core_ids: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns the text embeddings (B, D) before they are scaled to unit length."""
        return self.text_projection(self.text_tower(tokens, core_ids, train))

    def text_features(self, tokens: jax.Array) -> jax.Array:
        """Returns the text tower's output (B, W) for token ids (B, L), float32."""
        return self.text_tower(tokens, None, False)

    def __call__(
        self, images: jax.Array, tokens: jax.Array, core_ids: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Embeds a batch of pairs: returns image and text embeddings, (B, D) each.

        The arguments are those of `encode_images` and `encode_texts`.
        """
        return (
            self.encode_images(images, core_ids, train),
            self.encode_texts(tokens, core_ids, train),
        )


def scale_pixels(
    images: jax.Array, mean: PixelMean = HALVES, std: PixelStd = HALVES
) -> jax.Array:
    """Scales uint8 levels to float32; floats stay as they are.

    A level x becomes (x / 255 - mean) / std, computed as x / (255 std) - mean / std.
    Pictures travel to the device as bytes, a quarter of the memory, and are converted
    to floats where they are used.

    Args:
      images: (B, H, W, 3) levels, or floats that are scaled already.
      mean: red, green and blue that are subtracted, from 0 (black) to 1 (white).
      std: red, green and blue that divide.
    """
    if images.dtype != jnp.uint8:
        return images
    ones = np.ones((1, 1, 1, 3))
    levels, shift = 255 * np.array(std) * ones, np.array(mean) / np.array(std) * ones
    return images.astype(jnp.float32) / np.float32(levels) - np.float32(shift)


def temperature_of(params: Mapping) -> jax.Array:
    """Returns the temperature () of a dual encoder, whatever its `temperature_form`.

    `params` are the parameters of the complete model.
    """
    if "log_temperature" in params:
        return jnp.exp(params["log_temperature"])
    return params["temperature"]


def unit_length(x: jax.Array) -> jax.Array:
    """Scales rows of x (B, D) to unit Euclidean length; a row of zeros stays zero.

    Rows that are shorter than 1e-12 are only multiplied by 1e12.
    """
    squared = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
