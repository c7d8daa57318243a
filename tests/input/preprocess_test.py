import dataclasses
import io
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.input.preprocess import (
    PreprocessConfig,
    evaluation_image,
    train_image,
    uniform,
)
from align_jax.pictures import read_picture

# Results of Hugging Face's processor on photographs, see golden/make_preprocess.py.
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/preprocess.npz")
PHOTOGRAPHS = sorted({name.split("/")[0] for name in GOLDEN.files})


def encode(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def train(encoded, key, config):
    image, reason = train_image(encoded, (0, key), config)
    assert not reason
    return image


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_pixel_is_hugging_faces(name):
    resize, size = map(int, GOLDEN[f"{name}/sizes"])
    pixels = read_picture(GOLDEN[f"{name}/file"].tobytes())
    found = evaluation_image(pixels, PreprocessConfig(resize, size))
    apart = np.abs(found.astype(int) - GOLDEN[f"{name}/levels"])
    # Pillow 13 resizes the height of some tall pictures first, and rounds differently.
    assert apart.max() <= (1 if name == "rocket_tall" else 0)


def test_training_sees_what_evaluation_sees():
    name = PHOTOGRAPHS[0]
    encoded = GOLDEN[f"{name}/file"].tobytes()
    config = PreprocessConfig(100, 100, flip=False)
    expected = evaluation_image(read_picture(encoded), config)
    np.testing.assert_array_equal(train(encoded, 0, config), expected)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_other_resampling_is_tensorflows(name):
    pixels = read_picture(GOLDEN[f"{name}/file"].tobytes())
    for side in (31, 346):
        expected = tf.image.resize(pixels, (side, side)).numpy()
        found = evaluation_image(pixels, PreprocessConfig(side, side, "tf"))
        # We round twice, TensorFlow does not round.
        assert np.abs(found - expected).max() <= 1.0
        assert np.abs(found - expected).mean() < 0.35
    antialiased = evaluation_image(pixels, PreprocessConfig(31, 31))
    found = evaluation_image(pixels, PreprocessConfig(31, 31, "tf"))
    assert np.abs(found.astype(int) - antialiased).max() > 6


def test_alpha_is_laid_over_white():
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:2, :, 3] = 255
    pixels[2:, :, 3] = 51  # one fifth
    config = PreprocessConfig(4, 4, resampling="tf", flip=False)
    for out in (evaluation_image(pixels, config), train(encode(pixels), 0, config)):
        np.testing.assert_array_equal(out[0, 0], [200, 0, 0])
        np.testing.assert_array_equal(out[3, 3], [244, 204, 204])


def test_a_random_background_shows_through_in_training():
    empty = encode(np.zeros((4, 4, 4), np.uint8))
    config = PreprocessConfig(4, 4, random_background=True)
    colours = {tuple(train(empty, key, config)[0, 0]) for key in range(5)}
    assert len(colours) == 5


def test_evaluation_takes_the_centre():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:6, 2:6] = 255
    out = evaluation_image(pixels, PreprocessConfig(8, 4))
    np.testing.assert_array_equal(out, np.full((4, 4, 3), 255))


@pytest.mark.parametrize("name", sorted({*PHOTOGRAPHS} - {"grey"}))  # a square
@pytest.mark.parametrize("resampling", ["bicubic", "pil"])
@pytest.mark.parametrize(("resize", "size"), [(64, 64), (75, 64)])
def test_the_shortest_side_is_resized_as_by_pillow(name, resampling, resize, size):
    """CLIP's preprocessing; the longer side is rounded as in torchvision."""
    pixels = read_picture(GOLDEN[f"{name}/file"].tobytes())
    shape = pixels.shape[:2]
    height, width = (int(resize * side / min(shape)) for side in shape)
    kind = {"pil": "BILINEAR", "bicubic": "BICUBIC"}[resampling]
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling[kind])
    top, left = (height - size) // 2, (width - size) // 2
    expected = np.asarray(image)[top : top + size, left : left + size]
    config = PreprocessConfig(resize, size, resampling, evaluation_resize="shortest")
    found = evaluation_image(pixels, config).astype(int)
    assert np.abs(found - expected).max() <= 1
    squashed = evaluation_image(pixels, PreprocessConfig(resize, size, resampling))
    assert np.abs(squashed - expected.astype(int)).max() > 3


def test_training_crops_are_bicubic_if_evaluation_is():
    encoded = GOLDEN["cat_enlarged/file"].tobytes()
    config = PreprocessConfig(100, 100, "bicubic", flip=False)
    expected = evaluation_image(read_picture(encoded), config)
    np.testing.assert_array_equal(train(encoded, 0, config), expected)
    other = evaluation_image(read_picture(encoded), PreprocessConfig(100, 100))
    assert np.abs(other.astype(int) - expected).max() > 3


def test_inception_crops_show_windows_of_the_asked_area():
    rows, columns = np.mgrid[:60, :90].astype(np.uint8)
    pixels = np.stack([rows * 2, columns * 2, rows * 0], -1)
    config = PreprocessConfig(30, 30, crop="inception", crop_area=0.3, flip=False)
    areas = []
    for key in range(40):
        crop = train(encode(pixels), key, config).astype(float)
        height = np.ptp(crop[..., 0]) / 2 * 30 / 29
        width = np.ptp(crop[..., 1]) / 2 * 30 / 29
        assert 0.6 < width / height < 1.6
        areas.append(height * width / (60 * 90))
    assert min(areas) > 0.25
    assert max(areas) > 0.6
    assert np.ptp(areas) > 0.3


def test_jitter_keeps_a_picture_in_range_and_changes_it():
    pixels = GOLDEN["cat_enlarged/file"].tobytes()
    plain = PreprocessConfig(16, 16, flip=False)
    strong = PreprocessConfig(16, 16, flip=False, colour_jitter=0.6)
    crops = [train(pixels, key, strong) for key in range(6)]
    before = train(pixels, 0, plain).astype(int)
    assert all(np.abs(crop - before).max() > 6 for crop in crops)
    assert all(np.abs(crop - before).mean() < 120 for crop in crops)  # no wrapping
    np.testing.assert_array_equal(crops[0], train(pixels, 0, strong))


def test_training_crops_are_windows_and_a_function_of_the_key():
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    config = PreprocessConfig(8, 5, flip=False)
    encoded = encode(pixels)
    np.testing.assert_array_equal(train(encoded, 1, config), train(encoded, 1, config))
    corners = set()
    for key in range(60):
        values = train(encoded, key, config)[..., 0]
        top, left = divmod(values[0, 0], 8)
        np.testing.assert_array_equal(values, pixels[top : top + 5, left : left + 5])
        corners.add((top, left))
    assert {c[0] for c in corners} == {c[1] for c in corners} == {0, 1, 2, 3}


def test_flips_mirror_half_of_the_pictures():
    pixels = np.tile(np.arange(4, dtype=np.uint8), (4, 1))
    config = PreprocessConfig(4, 4, flip=True)
    encoded = encode(pixels)
    crops = [train(encoded, key, config) for key in range(100)]
    flipped = [crop[0, 0, 0] > crop[0, 3, 0] for crop in crops]
    assert 30 < sum(flipped) < 70


def test_a_crop_larger_than_the_picture_is_refused():
    with pytest.raises(ValueError, match=r"preprocess\.resize is 10, below .* 12"):
        PreprocessConfig(resize=10, image_size=12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resampling": "cubic"}, "resampling is 'cubic'; did you mean 'bicubic'"),
        ({"evaluation_resize": "long"}, "evaluation_resize is 'long'; known: squash"),
        ({"decode": "slow"}, "decode is 'slow'; known: fast, exact"),
        ({"crop": "x"}, "crop is 'x'; known: random, inception"),
        ({"crop_area": 1.5}, "crop_area is 1.5; wanted above 0, up to 1"),
        ({"image_size": 0}, "config.image_size is 0; wanted 1 to 65535"),
    ],
)
def test_unknown_choices_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        read_config(PreprocessConfig, fields)


def test_the_numbers_of_a_key_are_uniform_and_its_own():
    numbers = np.array(
        [
            [uniform((seed, row), i) for i in range(12)]
            for seed in (0, 5, 2**63)
            for row in range(300)
        ]
    )
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.05
    correlations = np.corrcoef(numbers.T) - np.eye(12)
    assert np.abs(correlations).max() < 0.12
    assert uniform((3, -1), 2) == uniform((np.int64(3), np.int64(-1)), 2)


def test_one_choice_does_not_move_another():
    encoded = encode(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    plain = PreprocessConfig(8, 5, flip=False)
    for key in range(8):
        expected = train(encoded, key, plain)
        flipped = train(encoded, key, dataclasses.replace(plain, flip=True))
        assert any(np.array_equal(c, expected) for c in (flipped, flipped[:, ::-1]))


def photograph(height, width, seed=0):
    """Makes a JPEG file of a golden photograph, enlarged, with grain."""
    pixels = read_picture(GOLDEN["china_289/file"].tobytes())
    large = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, 4, (height, width, 1))
    noisy = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
    return encode(noisy, "JPEG")


# Limits of the mean and the maximum of the distance, in levels of 255.
@pytest.mark.parametrize(
    ("size", "mean", "most"),
    [((600, 690), 0, 0), ((692, 1000), 1.5, 20), ((1500, 2100), 1.5, 20)],
)
def test_fast_decoding_stays_near_decoding_all(size, mean, most):
    encoded = photograph(*size)
    config = PreprocessConfig(resize=346, image_size=289)
    for key in range(3):
        fast = train(encoded, key, config).astype(int)
        exact = train(encoded, key, dataclasses.replace(config, decode="exact"))
        assert np.abs(fast - exact).mean() <= mean
        assert np.abs(fast - exact).max() <= most
    assert (np.abs(fast - exact).max() > 0) == (most > 0)
    unfiltered = dataclasses.replace(config, resampling="tf")
    exact = dataclasses.replace(unfiltered, decode="exact")
    np.testing.assert_array_equal(
        train(encoded, 0, unfiltered), train(encoded, 0, exact)
    )


def test_fast_decoding_knows_what_an_inception_crop_needs():
    encoded = photograph(1500, 2100)
    config = PreprocessConfig(64, 64, crop="inception", crop_area=0.2)
    for key in range(4):
        fast = train(encoded, key, config).astype(int)
        exact = train(encoded, key, dataclasses.replace(config, decode="exact"))
        assert np.abs(fast - exact).mean() < 2.5
