import concurrent.futures

import numpy as np
import pytest
from PIL import Image

from align_jax.input.resample import resample

DRAW = np.random.default_rng(0)


def draw(height, width):
    return DRAW.integers(0, 256, (height, width, 3), dtype=np.uint8)


FILTERS = {"pil": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def pillow(pixels, size, filtering="pil"):
    """Resizes with Pillow, always the width first."""
    height, width = size
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image = image.resize((width, image.height), FILTERS[filtering])
    return np.asarray(image.resize((width, height), FILTERS[filtering]))


@pytest.mark.parametrize("filtering", FILTERS)
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((375, 500), (346, 346)),
        ((500, 375), (346, 346)),
        ((60, 91), (120, 96)),
        ((346, 346), (346, 346)),
        ((1, 1), (5, 3)),
        ((1, 700), (2, 9)),
        ((129, 65), (64, 1)),
        ((1200, 900), (31, 40)),
        ((7, 13), (289, 290)),
    ],
)
def test_every_level_is_pillows(shape, size, filtering):
    pixels = draw(*shape)
    found = resample(pixels, size, filtering=filtering)
    np.testing.assert_array_equal(found, pillow(pixels, size, filtering))


def test_extreme_levels_stay_in_range():
    for level in (0, 255):
        pixels = np.full((99, 77, 3), level, np.uint8)
        for size in ((31, 37), (200, 201)):
            for filtering in FILTERS:
                assert (resample(pixels, size, filtering=filtering) == level).all()


def test_a_cubic_that_leaves_the_range_is_clipped_as_in_pillow():
    """Beside an edge of black and white, the cubic sums to less than 0 or over 255."""
    pixels = np.zeros((40, 50, 3), np.uint8)
    pixels[10:, 20:] = 255
    for size in ((80, 100), (27, 31)):
        found = resample(pixels, size, filtering="bicubic")
        np.testing.assert_array_equal(found, pillow(pixels, size, "bicubic"))
    assert {0, 255} <= {*found.ravel()}


def test_a_window_is_the_window_of_the_whole():
    pixels = draw(97, 141)
    whole = resample(pixels, (64, 73))
    for _ in range(30):
        height, width = DRAW.integers(1, 65), DRAW.integers(1, 74)
        top = DRAW.integers(0, 65 - height)
        left = DRAW.integers(0, 74 - width)
        window = (top, left, height, width)
        expected = whole[top : top + height, left : left + width]
        np.testing.assert_array_equal(resample(pixels, (64, 73), window), expected)
        mirrored = resample(pixels, (64, 73), window, mirror=True)
        np.testing.assert_array_equal(mirrored, expected[:, ::-1])


def test_a_part_is_pillows_box():
    pixels = draw(90, 70)
    image = Image.fromarray(pixels)
    for top, left, height, width in (
        (0, 0, 90, 70),
        (5.25, 60, 80, 10),
        (3, 2.5, 9, 9),
        (87.5, 66, 2.5, 3),
    ):
        box = (left, 0, left + width, 90)
        wide = image.resize((29, 90), Image.Resampling.BILINEAR, box)
        box = (0, top, 29, top + height)
        expected = wide.resize((29, 33), Image.Resampling.BILINEAR, box)
        found = resample(pixels, (33, 29), part=(top, left, height, width))
        np.testing.assert_array_equal(found, np.asarray(expected))


def test_views_and_read_only_arrays_are_read():
    pixels = draw(40, 50)
    turned = pixels[::-1].swapaxes(0, 1)
    expected = resample(np.ascontiguousarray(turned), (20, 30))
    np.testing.assert_array_equal(resample(turned, (20, 30)), expected)
    pixels.flags.writeable = False
    np.testing.assert_array_equal(resample(pixels, (20, 30)), pillow(pixels, (20, 30)))


def test_threads_do_not_change_a_bit():
    pictures = [draw(120 + i, 90 + 3 * i) for i in range(40)]
    alone = [resample(pixels, (64, 64)) for pixels in pictures]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda pixels: resample(pixels, (64, 64)), pictures))
    np.testing.assert_array_equal(together, alone)
