import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from align_jax.preprocess import PreprocessConfig, evaluation_image, train_image


def encode(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_alpha_is_laid_over_white():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:2, :, 3] = 255
    pixels[2:, :, 3] = 51  # one fifth
    out = evaluation_image(encode(pixels), PreprocessConfig(4, 4))
    np.testing.assert_allclose(out[0, 0], np.array([200, 0, 0]) / 127.5 - 1, atol=1e-6)
    faint = 0.2 * np.array([200, 0, 0]) + 0.8 * 255
    np.testing.assert_allclose(out[3, 3], faint / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kind"), [((5, 7), "PNG"), ((5, 7, 3), "PNG"), ((5, 7, 3), "BMP")]
)
def test_grey_and_colour_files_become_three_channels(shape, kind):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    out = evaluation_image(encode(pixels, kind), PreprocessConfig(8, 6))
    assert out.shape == (6, 6, 3)
    assert -1 <= out.numpy().min() <= out.numpy().max() <= 1


def test_grey_with_alpha_is_laid_over_white():
    file = io.BytesIO()
    Image.new("LA", (3, 3), (100, 0)).save(file, "PNG")
    out = evaluation_image(file.getvalue(), PreprocessConfig(3, 3))
    np.testing.assert_allclose(out, 1.0)


def test_evaluation_takes_the_centre():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:6, 2:6] = 255
    out = evaluation_image(encode(pixels), PreprocessConfig(8, 4))
    np.testing.assert_allclose(out, 1.0)


def test_training_crops_are_windows_and_a_function_of_the_key():
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    config = PreprocessConfig(8, 5, flip=False)
    crop = lambda key: train_image(  # noqa: E731
        encode(pixels), tf.constant([7, key], tf.int64), config
    ).numpy()
    np.testing.assert_array_equal(crop(1), crop(1))
    corners = set()
    for key in range(60):
        values = np.rint((crop(key)[..., 0] + 1) * 127.5).astype(int)
        top, left = divmod(values[0, 0], 8)
        np.testing.assert_array_equal(values, pixels[top : top + 5, left : left + 5])
        corners.add((top, left))
    assert {c[0] for c in corners} == {c[1] for c in corners} == {0, 1, 2, 3}


def test_flips_mirror_half_of_the_pictures():
    pixels = np.tile(np.arange(4, dtype=np.uint8), (4, 1))
    config = PreprocessConfig(4, 4, flip=True)
    flipped = [
        train_image(encode(pixels), tf.constant([0, key], tf.int64), config)[0, 0, 0]
        > train_image(encode(pixels), tf.constant([0, key], tf.int64), config)[0, 3, 0]
        for key in range(100)
    ]
    assert 30 < sum(map(bool, flipped)) < 70


def test_a_crop_larger_than_the_picture_is_refused():
    with pytest.raises(ValueError, match="preprocess.resize is 10, below .* 12"):
        PreprocessConfig(resize=10, image_size=12)
