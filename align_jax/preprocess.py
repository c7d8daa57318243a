"""Image preprocessing: decode, lay over a background, resize, crop, scale.

The paper (arXiv 2102.05918, section 5) resizes to 346 x 346 without keeping the aspect
ratio, crops 289 x 289 at random in training and from the centre in evaluation, and
flips at random in training. Pixels are scaled to [-1, 1].
"""

import dataclasses

import tensorflow as tf

WHITE = 255.0


@dataclasses.dataclass(frozen=True)
class PreprocessConfig:
    """Sizes and augmentations.

    Attributes:
      resize: side of the squashed picture before the crop, pixels (paper: 346).
      image_size: side of the crop, pixels (paper: 289).
      flip: mirror half of the training pictures.
      random_background: lay transparent training pictures over a random colour
        instead of white.
    """

    resize: int = 346
    image_size: int = 289
    flip: bool = True
    random_background: bool = False

    def __post_init__(self):
        if self.resize < self.image_size:
            raise ValueError(
                f"preprocess.resize is {self.resize}, below preprocess.image_size,"
                f" {self.image_size}"
            )


def train_image(encoded: tf.Tensor, seed: tf.Tensor, config: PreprocessConfig):
    """Decodes and augments one picture.

    Args:
      encoded: () bytes of a JPEG, PNG, GIF or BMP file.
      seed: (2,) int64 key; the result is a pure function of it and the picture.
      config: sizes and augmentations.

    Returns:
      (image_size, image_size, 3) float32 in [-1, 1].
    """
    offset_seed, flip_seed, colour_seed = tf.unstack(tf.random.split(seed, 3))
    background = tf.constant([WHITE] * 3)
    if config.random_background:
        background = tf.random.stateless_uniform((3,), colour_seed, 0.0, 255.0)
    image = _decode(encoded, background, config.resize)
    span = config.resize - config.image_size
    offset = tf.random.stateless_uniform((2,), offset_seed, 0, span + 1, tf.int32)
    image = tf.slice(image, [offset[0], offset[1], 0], [*[config.image_size] * 2, 3])
    if config.flip and tf.random.stateless_uniform((), flip_seed) < 0.5:
        image = tf.reverse(image, [1])
    return image / 127.5 - 1.0


def evaluation_image(encoded: tf.Tensor, config: PreprocessConfig) -> tf.Tensor:
    """Decodes one picture to its central crop; shapes as in `train_image`."""
    image = _decode(encoded, tf.constant([WHITE] * 3), config.resize)
    start = (config.resize - config.image_size) // 2
    stop = start + config.image_size
    return image[start:stop, start:stop] / 127.5 - 1.0


def _decode(encoded: tf.Tensor, background: tf.Tensor, side: int) -> tf.Tensor:
    """Decodes to (side, side, 3) float32 in [0, 255], alpha over `background` (3,)."""
    pixels = tf.io.decode_image(encoded, expand_animations=False)
    pixels = tf.cast(pixels, tf.float32)
    channels = tf.shape(pixels)[-1]
    if channels == 2 or channels == 4:
        alpha = pixels[..., -1:] / 255.0
        colour = tf.broadcast_to(
            pixels[..., :-1], tf.concat([tf.shape(pixels)[:2], [3]], 0)
        )
        pixels = alpha * colour + (1.0 - alpha) * background
    elif channels == 1:
        pixels = tf.tile(pixels, [1, 1, 3])
    pixels.set_shape((None, None, 3))
    # Bilinear without antialiasing, as the open reproduction trained.
    pixels = tf.image.resize(pixels, (side, side))
    return tf.ensure_shape(pixels, (side, side, 3))
