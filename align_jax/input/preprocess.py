"""Preprocesses pictures by one specification for training, evaluation and export.

The paper (arXiv 2102.05918, section 5) resizes to 346 x 346 without keeping the aspect
ratio, crops 289 x 289 at random in training and from the centre in evaluation, and
flips at random in training. CLIP (arXiv 2103.00020) resizes the shorter side instead.
Pixels stay uint8 until the model scales them. Only the pixels of the crop are computed.
"""

import dataclasses
import math
from functools import partial
from typing import Annotated

import numpy as np

from align_jax.config import LATE, check_choices
from align_jax.input.colours import lay_over, scale_colours
from align_jax.input.resample import resample
from align_jax.input.scratch import Scratch
from align_jax.pictures import MAX_PIXELS, PictureError, read_picture
from align_jax.ranges import Count, Range, Share, Side

WHITE = (255.0, 255.0, 255.0)
RESAMPLINGS = ("pil", "tf", "bicubic")
RESIZES = ("squash", "shortest")
CROPS = ("random", "inception")
DECODINGS = ("fast", "exact")

# Limits of an inception crop's width / height, and the number of attempts to draw one;
# arXiv 1409.4842.
LEAST_ASPECT, MOST_ASPECT = 3 / 4, 4 / 3
ATTEMPTS = 10

# Indices of a key's random numbers, fixed for each choice, so that switching one choice
# on or off does not change another.
CROP, FLIP, BACKGROUND, COLOUR, SHAPE = 0, 2, 3, 6, 9


@dataclasses.dataclass(frozen=True)
class PreprocessConfig:
    """Sizes and augmentations of pictures.

    Attributes:
      resize: side of the squashed picture before the crop, pixels (paper: 346); in
        evaluation with `evaluation_resize` "shortest", the shorter side.
      image_size: side of the crop, pixels (paper: 289).
      resampling: "pil" (bilinear and antialiased, rounded as Pillow does), "bicubic"
        (the same with Pillow's cubic filter, as CLIP and SigLIP) or "tf" (bilinear
        without antialiasing, as in the training of the open model).
      decode: decoding in training. "fast" decodes JPEG files that are at least twice as
        large as needed at 1/2, 3/8, 1/4 or 1/8 of their size, unless `resampling` is
        "tf"; "exact" does not.
      crop: crop in training. "random" takes a window of the squashed picture,
        "inception" a window of random area and shape of the whole picture
        (arXiv 1409.4842).
      crop_area: smallest fraction of the picture's area that an inception crop shows.
      flip: whether to mirror half of the training pictures.
      random_background: whether to lay transparent training pictures over a random
        colour instead of white.
      colour_jitter: largest relative change of brightness, contrast and saturation in
        training, 0 to 1; 0 changes nothing.
      max_pixels: largest number of pixels; a larger picture is refused before it is
        decoded.
      evaluation_resize: resize in evaluation. "squash" makes the picture a square,
        "shortest" keeps its aspect ratio and cuts what the crop leaves over (CLIP).
    """

    resize: Side = 346
    image_size: Side = 289
    resampling: str = "pil"
    decode: str = "fast"
    crop: str = "random"
    crop_area: Annotated[float, Range(above=0, most=1)] = 0.08
    flip: bool = True
    random_background: bool = False
    colour_jitter: Share = 0.0
    max_pixels: Count = MAX_PIXELS
    evaluation_resize: str = dataclasses.field(default="squash", metadata=LATE)

    def __post_init__(self) -> None:
        if self.resize < self.image_size:
            raise ValueError(
                f"preprocess.resize is {self.resize}, below preprocess.image_size,"
                f" {self.image_size}"
            )
        choices = {
            "resampling": RESAMPLINGS,
            "decode": DECODINGS,
            "crop": CROPS,
            "evaluation_resize": RESIZES,
        }
        check_choices(self, choices, "preprocess.")


def train_image(
    encoded: bytes,
    key: tuple[int, int],
    config: PreprocessConfig,
    out: np.ndarray | None = None,
    scratch: Scratch | None = None,
) -> tuple[np.ndarray, str]:
    """Decodes and augments one picture; a bad one gives black pixels and a reason.

    Args:
      encoded: bytes of a picture file.
      key: two integers, the seed of all random choices. The result depends only on
        `key`, `encoded` and `config`.
      config: sizes and augmentations.
      out: array for the result; None for a new one.
      scratch: memory for intermediate results; None for new memory.

    Returns:
      uint8 (image_size, image_size, 3), and the reason why the picture cannot be used
      ("" if it can), see `PictureError.reason`.
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
        # Decoders of untrusted bytes raise anything (struct.error, KeyError, ...).
        reason = "broken"
    out[:] = 0
    return out, reason


def evaluation_image(pixels: np.ndarray, config: PreprocessConfig) -> np.ndarray:
    """Lays a picture over white, resizes it and crops the centre.

    Where a crop of the centre leaves an odd number of pixels over, the larger part is
    at the right or the bottom.

    Args:
      pixels: uint8 (H, W, 3) or (H, W, 4), see `read_picture`.
      config: sizes.

    Returns:
      uint8 (image_size, image_size, 3).
    """
    height = width = config.resize
    if config.evaluation_resize == "shortest":
        height, width = _keep_aspect(pixels.shape[0], pixels.shape[1], config.resize)
    side = config.image_size
    return resample(
        lay_over(pixels, WHITE),
        (height, width),
        ((height - side) // 2, (width - side) // 2, side, side),
        filtering=config.resampling,
    )


def _keep_aspect(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Returns the height and width of a picture whose shorter side gets a new length.

    The longer side is rounded down from the same float as in torchvision and in Hugging
    Face's CLIP processor.
    """
    longer = int(shorter * max(height, width) / min(height, width))
    return (shorter, longer) if height <= width else (longer, shorter)


GOLDEN, WORD = 0x9E3779B97F4A7C15, 2**64 - 1  # constants of SplitMix64


def uniform(key: tuple[int, int], index: int) -> float:
    """Returns random number `index` of a key, in [0, 1).

    The generator is SplitMix64 (Steele et al., Fast splittable pseudorandom number
    generators, 2014). The mixed first half of the key seeds one sequence, in which the
    second half is a position. The output there seeds the sequence of the key's numbers.
    """
    state = _mix(_mix(int(key[0]) + GOLDEN) + int(key[1]) * GOLDEN)
    return (_mix(state + (index + 1) * GOLDEN) >> 11) * 2.0**-53


def _mix(x: int) -> int:
    x &= WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def _augment(
    encoded: bytes,
    key: tuple[int, int],
    config: PreprocessConfig,
    out: np.ndarray,
    scratch: Scratch | None,
) -> None:
    """Writes an augmented picture to `out`; raises PictureError for a bad one."""
    background: tuple[float, ...] = WHITE
    if config.random_background:
        background = tuple(255.0 * uniform(key, BACKGROUND + i) for i in range(3))
    pixels = read_picture(
        encoded,
        "a record's picture",
        config.max_pixels,
        _least_size(config),
        partial(scratch.take, "pixels") if scratch else None,
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
        filtering=config.resampling,
        mirror=config.flip and uniform(key, FLIP) < 0.5,
        out=out,
    )
    if config.colour_jitter:
        _jitter(out, key, config.colour_jitter)


def _least_size(config: PreprocessConfig) -> tuple[int, int] | None:
    """Returns the height and width below which a JPEG decoder must not shrink pictures.

    None means that the decoder must not shrink them at all.
    """
    if config.decode == "exact" or config.resampling == "tf":
        return None  # the decoder would filter, which "tf" resampling does not
    side: float = config.resize
    if config.crop == "inception":  # the smallest window must have image_size pixels
        smallest = math.sqrt(config.crop_area * LEAST_ASPECT)
        side = min(config.image_size / max(smallest, 1e-3), 2**16)
    return math.ceil(side), math.ceil(side)


def _inception_window(
    height: int, width: int, key: tuple[int, int], least: float
) -> tuple[float, float, float, float]:
    """Returns top, left, height and width of a window of random area and shape.

    They are in pixels, but not rounded, so that the window is the same at any scale of
    decoding. If no attempt fits into the picture, the window is the whole picture.
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


def _jitter(image: np.ndarray, key: tuple[int, int], most: float) -> None:
    """Scales saturation, contrast and brightness, each by a factor in 1 +- `most`."""
    factors = (1.0 - most + 2.0 * most * uniform(key, COLOUR + i) for i in range(3))
    scale_colours(image, *factors)
