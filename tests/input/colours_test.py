"""The compiled changes of colours are those of the same formulas in numpy."""

import numpy as np
import pytest

from align_jax.input.colours import lay_over, scale_colours

F = np.float32


@pytest.mark.parametrize("background", [(255.0, 255.0, 255.0), (0.0, 17.3, 201.7)])
def test_every_level_and_alpha_lies_over_a_background_as_in_numpy(background):
    level, alpha = np.mgrid[:256, :256].astype(np.uint8)
    pixels = np.stack([level, level[::-1], level, alpha], -1)
    colour = np.asarray(background, F)
    mixed = colour + pixels[..., 3:] / F(255) * (pixels[..., :3] - colour)
    found = lay_over(pixels, background)
    np.testing.assert_array_equal(found, np.rint(mixed).astype(np.uint8))
    np.testing.assert_array_equal(lay_over(pixels[:, ::3], background), found[:, ::3])


def test_a_picture_without_alpha_is_returned_as_it_is():
    pixels = np.zeros((2, 3, 3), np.uint8)
    assert lay_over(pixels, (1.0, 2.0, 3.0)) is pixels


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (57, 91), (289, 289)])
def test_colours_are_scaled_as_in_numpy(shape):
    random = np.random.default_rng(shape[0])
    for _ in range(20):
        image = random.integers(0, 256, (*shape, 3), np.uint8)
        factors = random.uniform(0.2, 1.8, 3)
        saturation, contrast, brightness = factors.astype(F)
        grey = image.mean(-1, keepdims=True, dtype=F)
        coloured = grey + saturation * (image - grey)
        mean = coloured.mean()
        coloured = brightness * (mean + contrast * (coloured - mean))
        scale_colours(image, *factors)
        wanted = np.rint(coloured.clip(0.0, 255.0)).astype(np.uint8)
        np.testing.assert_array_equal(image, wanted)
