import io

import numpy as np
import pytest
from PIL import Image

from align_jax.input.word_attack import choose_wrong, write_word
from align_jax.pictures import read_picture


def grey(height, width):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()


def written(height, width, word, seed=0):
    found = write_word(grey(height, width), word, np.random.default_rng(seed))
    return read_picture(found)


@pytest.mark.parametrize("size", [(300, 400), (400, 200)])
def test_a_word_is_white_with_a_black_rim_and_between_the_borders(size):
    for seed in range(5):
        pixels = written(*size, "Granny Smith", seed)
        assert pixels.shape == (*size, 3)
        assert pixels.min() == 0
        assert pixels.max() == 255
        changed = (pixels != 128).any(2)
        for axis, side in enumerate(size):
            rows = np.flatnonzero(changed.any(1 - axis))
            assert 0.1 * side - 2 <= rows[0] <= rows[-1] <= 0.9 * side + 2
            assert axis or 0.05 * side < rows[-1] - rows[0] < 0.2 * side


def test_tiny_pictures_and_long_words_are_written_as_well_as_they_can_be():
    for size, word in (((9, 9), "word"), ((80, 40), "word " * 20), ((9, 9), "")):
        pixels = written(*size, word)
        assert pixels.shape == (*size, 3)
        assert (pixels != 128).any() == bool(word)


def test_the_position_is_the_generator_s_alone():
    first = written(60, 60, "ox", seed=1)
    np.testing.assert_array_equal(first, written(60, 60, "ox", seed=1))
    assert (first != written(60, 60, "ox", seed=2)).any()


def test_wrong_classes_have_another_name():
    names = ["missile", "cat", "missile", "dog"]
    random = np.random.default_rng(0)
    found = [choose_wrong(names, 0, random) for _ in range(60)]
    assert {*found} == {1, 3}
    assert {choose_wrong(names, 3, random) for _ in range(60)} == {0, 1, 2}
