"""Image preprocessing, one specification for training, evaluation and export.

The paper (arXiv 2102.05918, section 5) resizes to 346 x 346 without keeping the aspect
ratio, crops 289 x 289 at random in training and from the centre in evaluation, and
flips at random in training. Pictures stay whole levels, uint8, until the model scales
them to [-1, 1]. Only the pixels of the crop are computed.
"""

import dataclasses
import math
from functools import partial

import numpy as np

from align_jax.input.resample import resample
from align_jax.input.scratch import Scratch
from align_jax.pictures import MAX_PIXELS, PictureError, read_picture

WHITE = (255.0, 255.0, 255.0)
RESAMPLINGS = ("pil", "tf")
CROPS = ("random", "inception")
DECODINGS = ("fast", "exact")

# An inception crop's width / height, and how often one is tried; arXiv 1409.4842.
LEAST_ASPECT, MOST_ASPECT = 3 / 4, 4 / 3
ATTEMPTS = 10

# Which of a key's numbers decides what, so that no choice moves another.
CROP, FLIP, BACKGROUND, COLOUR, SHAPE = 0, 2, 3, 6, 9


@dataclasses.dataclass(frozen=True)
class PreprocessConfig:
    """Sizes and augmentations.

    Attributes:
      resize: side of the squashed picture before the crop, pixels (paper: 346).
      image_size: side of the crop, pixels (paper: 289).
      resampling: "pil" (antialiased, rounded as Pillow does) or "tf" (bilinear without
        antialiasing, what the open model was trained with).
      decode: of training, "fast" (JPEG files at least twice as large as needed are
        decoded at 1/2, 1/4 or 1/8, where `resampling` is "pil") or "exact".
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
    decode: str = "fast"
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
        choices = {"resampling": RESAMPLINGS, "decode": DECODINGS, "crop": CROPS}
        for name, known in choices.items():
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


def train_image(
    encoded: bytes,
    key: tuple[int, int],
    config: PreprocessConfig,
    out: np.ndarray | None = None,
    scratch: Scratch | None = None,
) -> tuple[np.ndarray, str]:
    """Decodes and augments one picture; a bad one gives black and a reason.

    Args:
      encoded: bytes of a picture file.
      key: the result is a pure function of it and the picture.
      config: sizes and augmentations.
      out: array that the result is written to, by default a new one.
      scratch: memory that is used meanwhile.

    Returns:
      uint8 (image_size, image_size, 3), and "" or why the picture cannot be used, see
      `PictureError.reason`.
    """
    if out is None:
        out = np.empty((config.image_size, config.image_size, 3), np.uint8)
    try:
        _augment(encoded, key, config, out, scratch)
        return out, ""
    except PictureError as error:
        reason = error.reason
    except MemoryError:
        raise
    except Exception:
        # Decoders of untrusted bytes fail in any way (struct.error, KeyError, ...).
        reason = "broken"
    out[:] = 0
    return out, reason


def evaluation_image(pixels: np.ndarray, config: PreprocessConfig) -> np.ndarray:
    """Squashes a picture and takes the centre.

    Args:
      pixels: uint8 (H, W, 3) or (H, W, 4), see `read_picture`.
      config: sizes.

    Returns:
      uint8 (image_size, image_size, 3).
    """
    start = (config.resize - config.image_size) // 2
    return resample(
        lay_over(pixels, WHITE),
        (config.resize, config.resize),
        (start, start, config.image_size, config.image_size),
        antialias=config.resampling == "pil",
    )


def lay_over(pixels: np.ndarray, background: tuple[float, ...]) -> np.ndarray:
    """Lays uint8 (H, W, 3 or 4) over a colour (3,), 0 to 255; uint8 (H, W, 3)."""
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:] / np.float32(255.0)
    colour = np.asarray(background, np.float32)
    mixed = colour + alpha * (pixels[..., :3] - colour)
    return np.rint(mixed).astype(np.uint8)


GOLDEN, WORD = 0x9E3779B97F4A7C15, 2**64 - 1  # of SplitMix64


def uniform(key: tuple[int, int], index: int) -> float:
    """The number `index` of a key, in [0, 1).

    SplitMix64 (Steele et al., Fast splittable pseudorandom number generators, 2014)
    with the key's first half as its seed after mixing and the second as its place.
    """
    state = _mix(_mix(int(key[0]) + GOLDEN) + int(key[1]) * GOLDEN)
    return (_mix(state + (index + 1) * GOLDEN) >> 11) * 2.0**-53


def _mix(x: int) -> int:
    x &= WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def _augment(encoded, key, config: PreprocessConfig, out, scratch) -> None:
    """What `train_image` does with a good picture."""
    background: tuple[float, ...] = WHITE
    if config.random_background:
        background = tuple(255.0 * uniform(key, BACKGROUND + i) for i in range(3))
    pixels = read_picture(
        encoded,
        "a record's picture",
        config.max_pixels,
        _least_size(config),
        scratch and partial(scratch.take, "pixels"),
    )
    pixels = lay_over(pixels, background)
    side = config.image_size
    if config.crop == "inception":
        height, width, _ = pixels.shape
        part = _inception_window(height, width, key, config.crop_area)
        size, window = (side, side), None
    else:
        span = config.resize - side + 1
        top, left = (int(span * uniform(key, CROP + i)) for i in range(2))
        part, size = None, (config.resize, config.resize)
        window = (top, left, side, side)
    resample(
        pixels,
        size,
        window,
        part,
        antialias=config.resampling == "pil",
        mirror=config.flip and uniform(key, FLIP) < 0.5,
        out=out,
        scratch=scratch,
    )
    if config.colour_jitter:
        out[:] = _jitter(out, key, config.colour_jitter)


def _least_size(config: PreprocessConfig) -> tuple[int, int] | None:
    """Size below which a picture must not be decoded; None for the exact size."""
    if config.decode == "exact" or config.resampling == "tf":
        return None  # what would not be filtered must not be filtered by the decoder
    side: float = config.resize
    if config.crop == "inception":  # the smallest window is enlarged by no more
        smallest = math.sqrt(config.crop_area * LEAST_ASPECT)
        side = min(config.image_size / max(smallest, 1e-3), 2**16)
    return math.ceil(side), math.ceil(side)


def _inception_window(height: int, width: int, key, least: float) -> tuple:
    """Top, left, height and width of a window of random area and shape, in pixels.

    Fractions of a pixel count, so that it is the same at any scale of decoding.
    """
    for attempt in range(ATTEMPTS):
        aspect = uniform(key, SHAPE + 2 * attempt)
        aspect = LEAST_ASPECT + aspect * (MOST_ASPECT - LEAST_ASPECT)
        lowest = math.sqrt(least * height * width / aspect)
        highest = min(math.sqrt(height * width / aspect), height, width / aspect)
        if lowest > highest:
            continue
        rows = lowest + uniform(key, SHAPE + 2 * attempt + 1) * (highest - lowest)
        columns = min(rows * aspect, width)
        top = uniform(key, CROP) * (height - rows)
        left = uniform(key, CROP + 1) * (width - columns)
        return top, left, rows, columns
    return 0, 0, height, width


def _jitter(image: np.ndarray, key, most: float) -> np.ndarray:
    """Scales saturation, contrast and brightness of (H, W, 3), each by 1 +- most."""
    saturation, contrast, brightness = (
        np.float32(1.0 - most + 2.0 * most * uniform(key, COLOUR + i)) for i in range(3)
    )
    grey = image.mean(-1, keepdims=True, dtype=np.float32)
    coloured = grey + saturation * (image - grey)
    mean = coloured.mean()
    coloured = brightness * (mean + contrast * (coloured - mean))
    return np.rint(coloured.clip(0.0, 255.0)).astype(np.uint8)
