import io
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from align_jax.pictures import read_picture
from align_jax.preprocess import PreprocessConfig, evaluation_image, train_image

# Hugging Face's processor on photographs, see golden/make_preprocess.py.
GOLDEN = np.load(pathlib.Path(__file__).parent / "golden/preprocess.npz")
PHOTOGRAPHS = sorted({name.split("/")[0] for name in GOLDEN.files})


def encode(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def train(encoded, key, config):
    return train_image(encoded, tf.constant([0, key], tf.int64), config).numpy()


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_pixel_is_hugging_faces(name):
    resize, size = map(int, GOLDEN[f"{name}/sizes"])
    pixels = read_picture(GOLDEN[f"{name}/file"].tobytes())
    found = evaluation_image(tf.constant(pixels), PreprocessConfig(resize, size))
    levels = (found.numpy() + 1) * 127.5
    expected = GOLDEN[f"{name}/levels"].astype(float)
    assert np.abs(levels - expected).max() < 1.001  # one level of 255


def test_training_sees_what_evaluation_sees():
    name = PHOTOGRAPHS[0]
    encoded = GOLDEN[f"{name}/file"].tobytes()
    config = PreprocessConfig(100, 100, flip=False)
    expected = evaluation_image(tf.constant(read_picture(encoded)), config)
    np.testing.assert_allclose(train(encoded, 0, config), expected, atol=1e-6)


def test_the_other_resampling_is_tensorflows():
    pixels = read_picture(GOLDEN["cat_enlarged/file"].tobytes())
    config = PreprocessConfig(31, 31, resampling="tf")
    expected = tf.image.resize(pixels, (31, 31)) / 127.5 - 1
    found = evaluation_image(tf.constant(pixels), config)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    antialiased = evaluation_image(tf.constant(pixels), PreprocessConfig(31, 31))
    assert np.abs(found - antialiased).max() > 0.05


def test_alpha_is_laid_over_white():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:2, :, 3] = 255
    pixels[2:, :, 3] = 51  # one fifth
    config = PreprocessConfig(4, 4, resampling="tf", flip=False)
    for out in (
        evaluation_image(tf.constant(pixels), config).numpy(),
        train(encode(pixels), 0, config),
    ):
        opaque = np.array([200, 0, 0]) / 127.5 - 1
        np.testing.assert_allclose(out[0, 0], opaque, atol=1e-6)
        faint = 0.2 * np.array([200, 0, 0]) + 0.8 * 255
        np.testing.assert_allclose(out[3, 3], faint / 127.5 - 1, atol=1e-6)


def test_a_random_background_shows_through_in_training():
    empty = encode(np.zeros((4, 4, 4), np.uint8))
    config = PreprocessConfig(4, 4, random_background=True)
    colours = {tuple(train(empty, key, config)[0, 0]) for key in range(5)}
    assert len(colours) == 5


def test_evaluation_takes_the_centre():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:6, 2:6] = 255
    out = evaluation_image(tf.constant(pixels), PreprocessConfig(8, 4))
    np.testing.assert_allclose(out, 1.0)


def test_inception_crops_show_windows_of_the_asked_area():
    rows, columns = np.mgrid[:60, :90].astype(np.uint8)
    pixels = np.stack([rows * 2, columns * 2, rows * 0], -1)
    config = PreprocessConfig(30, 30, crop="inception", crop_area=0.3, flip=False)
    areas = []
    for key in range(40):
        crop = (train(encode(pixels), key, config) + 1) * 127.5
        height = np.ptp(crop[..., 0]) / 2 * 30 / 29
        width = np.ptp(crop[..., 1]) / 2 * 30 / 29
        assert 0.6 < width / height < 1.6
        areas.append(height * width / (60 * 90))
    assert min(areas) > 0.25 and max(areas) > 0.6 and np.ptp(areas) > 0.3


def test_jitter_keeps_a_picture_in_range_and_changes_it():
    pixels = GOLDEN["cat_enlarged/file"].tobytes()
    plain = PreprocessConfig(16, 16, flip=False)
    strong = PreprocessConfig(16, 16, flip=False, colour_jitter=0.6)
    crops = [train(pixels, key, strong) for key in range(6)]
    assert all(-1 <= crop.min() and crop.max() <= 1 for crop in crops)
    assert all(np.abs(c - train(pixels, 0, plain)).max() > 0.05 for c in crops)
    np.testing.assert_array_equal(crops[0], train(pixels, 0, strong))


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resampling": "cubic"}, "resampling is 'cubic'; known: pil, tf"),
        ({"crop": "x"}, "crop is 'x'; known: random, inception"),
        ({"crop_area": 1.5}, "crop_area is 1.5; wanted 0 to 1"),
    ],
)
def test_unknown_choices_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PreprocessConfig(**fields)
