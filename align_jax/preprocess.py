"""Image preprocessing, one specification for training, evaluation and export.

The paper (arXiv 2102.05918, section 5) resizes to 346 x 346 without keeping the aspect
ratio, crops 289 x 289 at random in training and from the centre in evaluation, and
flips at random in training. Pixels are scaled to [-1, 1].
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from align_jax.errors import InputError
from align_jax.pictures import MAX_PIXELS, decode_picture

WHITE = 255.0
RESAMPLINGS = ("pil", "tf")
CROPS = ("random", "inception")


@dataclasses.dataclass(frozen=True)
class PreprocessConfig:
    """Sizes and augmentations.

    Attributes:
      resize: side of the squashed picture before the crop, pixels (paper: 346).
      image_size: side of the crop, pixels (paper: 289).
      resampling: "pil" (antialiased, rounded as Pillow does) or "tf" (bilinear without
        antialiasing, what the open model was trained with).
      crop: of training, "random" (a window of the squashed picture) or "inception" (a
        window of the whole picture of random area and shape; arXiv 1409.4842).
      crop_area: smallest part of the picture that an inception crop may show.
      flip: mirror half of the training pictures.
      random_background: lay transparent training pictures over a random colour
        instead of white.
      colour_jitter: brightness, contrast and saturation of training pictures change by
        up to this part.
      max_pixels: larger pictures are refused before they are decoded.
    """

    resize: int = 346
    image_size: int = 289
    resampling: str = "pil"
    crop: str = "random"
    crop_area: float = 0.08
    flip: bool = True
    random_background: bool = False
    colour_jitter: float = 0.0
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        if self.resize < self.image_size:
            raise ValueError(
                f"preprocess.resize is {self.resize}, below preprocess.image_size,"
                f" {self.image_size}"
            )
        for name, known in (("resampling", RESAMPLINGS), ("crop", CROPS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"preprocess.{name} is {getattr(self, name)!r}; known:"
                    f" {', '.join(known)}"
                )
        for name in ("crop_area", "colour_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"preprocess.{name} is {getattr(self, name)}; wanted 0 to 1"
                )


def train_image(encoded: tf.Tensor, seed: tf.Tensor, config: PreprocessConfig):
    """Decodes and augments one picture.

    Args:
      encoded: () bytes of a picture file.
      seed: (2,) int64 key; the result is a pure function of it and the picture.
      config: sizes and augmentations.

    Returns:
      (image_size, image_size, 3) float32 in [-1, 1].
    """
    keys = tf.unstack(tf.random.split(seed, 4))
    crop_key, flip_key, background_key, colour_key = keys
    background = tf.constant([WHITE] * 3)
    if config.random_background:
        background = tf.random.stateless_uniform((3,), background_key, 0.0, 255.0)
    image = lay_over(decode_picture(encoded, config.max_pixels), background)
    side = config.image_size
    if config.crop == "inception":
        image = _inception_crop(image, crop_key, config)
    else:
        image = _squash(image, config.resize, config.resampling)
        span = config.resize - side
        top, left = tf.unstack(
            tf.random.stateless_uniform((2,), crop_key, 0, span + 1, tf.int32)
        )
        image = image[top : top + side, left : left + side]
    if config.flip and tf.random.stateless_uniform((), flip_key) < 0.5:
        image = tf.reverse(image, [1])
    if config.colour_jitter:
        image = _jitter(image, colour_key, config.colour_jitter)
    return tf.ensure_shape(image, (side, side, 3)) / 127.5 - 1.0


def evaluation_image(pixels: tf.Tensor, config: PreprocessConfig) -> tf.Tensor:
    """Squashes a picture and takes the centre.

    Args:
      pixels: uint8 (H, W, 3) or (H, W, 4), see `read_picture` and `decode_picture`.
      config: sizes.

    Returns:
      (image_size, image_size, 3) float32 in [-1, 1].
    """
    image = lay_over(pixels, tf.constant([WHITE] * 3))
    image = _squash(image, config.resize, config.resampling)
    start = (config.resize - config.image_size) // 2
    stop = start + config.image_size
    return image[start:stop, start:stop] / 127.5 - 1.0


def lay_over(pixels: tf.Tensor, background: tf.Tensor) -> tf.Tensor:
    """Lays uint8 (H, W, 3 or 4) over a colour (3,); float32 (H, W, 3) in [0, 255]."""
    image = tf.cast(pixels, tf.float32)
    if tf.shape(image)[-1] == 4:
        alpha = image[..., 3:] / 255.0
        image = alpha * image[..., :3] + (1.0 - alpha) * background
    return tf.ensure_shape(image, (None, None, 3))


def _squash(image: tf.Tensor, side: int, resampling: str) -> tf.Tensor:
    """Resizes (H, W, 3) to (side, side, 3), in [0, 255]."""
    if resampling == "tf":
        return tf.image.resize(image, (side, side))
    # Pillow reduces the width first and rounds to whole levels after each direction.
    height = tf.shape(image)[0]
    for size in ((height, side), (side, side)):
        image = tf.floor(tf.image.resize(image, size, antialias=True) + 0.5)
    return image


def _inception_crop(image, key, config: PreprocessConfig) -> tf.Tensor:
    """A window of random area and shape, resized to (image_size, image_size, 3)."""
    offset, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros((0, 0, 4)),
        key,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(config.crop_area, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return _squash(tf.slice(image, offset, size), config.image_size, config.resampling)


def _jitter(image: tf.Tensor, key: tf.Tensor, most: float) -> tf.Tensor:
    """Scales saturation, contrast and brightness of (H, W, 3), each by 1 +- most."""
    saturation, contrast, brightness = tf.unstack(
        tf.random.stateless_uniform((3,), key, 1.0 - most, 1.0 + most)
    )
    grey = tf.reduce_mean(image, -1, keepdims=True)
    image = grey + saturation * (image - grey)
    mean = tf.reduce_mean(image)
    image = brightness * (mean + contrast * (image - mean))
    return tf.clip_by_value(image, 0.0, 255.0)


def train_images(
    encoded: Sequence[bytes],
    keys: np.ndarray,
    config: PreprocessConfig,
    out: np.ndarray,
) -> list[str]:
    """Augments N pictures into `out` (N, S, S, 3) uint8; returns reasons."""
    prepare = _prepare(config)
    reasons = []
    for row, (file, key) in enumerate(zip(encoded, keys, strict=True)):
        try:
            image = prepare(tf.constant(file), tf.constant(key)).numpy()
            out[row] = np.rint((image + 1.0) * 127.5)
            reasons.append("")
        except (InputError, tf.errors.OpError) as error:
            reasons.append(str(error)[:100] or "undecodable")
    return reasons


@functools.cache
def _prepare(config):
    return tf.function(
        functools.partial(train_image, config=config)
    ).get_concrete_function(tf.TensorSpec((), tf.string), tf.TensorSpec((2,), tf.int64))
