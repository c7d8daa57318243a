import numba
import numpy as np

from align_jax.input.transpose import SIDE, transpose_pixels, transpose_words


@numba.njit
def transpose(pixels, words, back):
    source, line = pixels.ctypes.data, pixels.strides[0]
    target, lanes = words.ctypes.data, words.strides[0]
    transpose_pixels(source, line, target, lanes)
    transpose_words(target, lanes, back.ctypes.data, back.strides[0])


def test_a_square_is_transposed_and_nothing_beside_it():
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    words = np.full((SIDE, SIDE + 1), -1, np.int32)
    back = np.full((SIDE, 3 * SIDE + 1), 7, np.uint8)
    transpose(pixels, words, back)
    packed = pixels.astype(np.int32) @ np.array([1, 2**8, 2**16])
    np.testing.assert_array_equal(words[:, :SIDE], packed.T)
    np.testing.assert_array_equal(back[:, :-1], pixels.reshape(SIDE, -1))
    assert (words[:, SIDE] == -1).all()
    assert (back[:, -1] == 7).all()
