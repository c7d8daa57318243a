"""Queries: sums of pictures and texts, computed by hand."""

import numpy as np
import pytest

from align_jax.errors import InputError
from align_jax.search.queries import Term, query_embedding
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect

AXES = [*tiny.COLOURS, *tiny.SHAPES]
MODEL = FixedEncoder(perfect, perfect)
LEFT = tiny.draw("red left", 90)


def unit(**values):
    vector = np.array([values.get(axis, 0.0) for axis in AXES])
    return vector / np.linalg.norm(vector)


def test_one_term_is_its_own_embedding():
    assert np.allclose(query_embedding(MODEL, [Term("blue")]), unit(blue=1))
    image = query_embedding(MODEL, [Term(LEFT)])
    assert np.allclose(image, unit(red=1, left=1))
    assert image.dtype == np.float32
    own = np.float32(unit(green=1))
    assert np.array_equal(query_embedding(MODEL, [Term(own)]), own)


def test_a_picture_and_a_text_have_the_paper_s_weights():
    half = np.sqrt(0.5)
    both = query_embedding(MODEL, [Term(LEFT), Term("blue")])
    assert np.allclose(both, unit(red=half, left=half, blue=2))
    less = query_embedding(MODEL, [Term(LEFT), Term("red", -0.25)])
    assert np.allclose(less, unit(red=half - 0.25, left=half))


def test_a_weight_of_zero_is_as_if_the_term_were_not_there():
    terms = [Term(LEFT, 0.3), Term("blue", 1.7)]
    plain = query_embedding(MODEL, terms)
    minus = query_embedding(MODEL, [*terms, Term("green", -0.0), Term("top", 0)])
    assert np.array_equal(plain, minus)


def test_a_query_without_a_direction_is_refused():
    for terms in ([], [Term("blue", 0)]):
        with pytest.raises(InputError, match="the query is empty"):
            query_embedding(MODEL, terms)
    with pytest.raises(InputError, match="cancel each other"):
        query_embedding(MODEL, [Term("blue", 2), Term("blue", -2)])
