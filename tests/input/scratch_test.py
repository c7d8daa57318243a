import concurrent.futures
import runpy
import sys

import numpy as np
import pytest

from align_jax.input import scratch
from align_jax.input.scratch import Scratch


def test_a_threads_pieces_are_the_same_memory_and_grow():
    pieces = Scratch()
    small, other = pieces.take("a", 10), pieces.take("b", 10)
    assert small.shape == (10,)
    assert np.shares_memory(small, pieces.take("a", 5))
    assert not np.shares_memory(small, other)
    large = pieces.take("a", 20)
    assert large.shape == (20,)
    assert not np.shares_memory(small, large)
    assert np.shares_memory(large, pieces.take("a", 20))


def test_threads_have_memory_of_their_own():
    pieces = Scratch()
    mine = pieces.take("a", 10)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(pieces.take, "a", 10).result()
    assert not np.shares_memory(mine, theirs)


@pytest.mark.parametrize("uncounted", [1, 2])  # the lambda's reference, and another
def test_an_array_is_given_again_only_when_nobody_refers_to_it(monkeypatch, uncounted):
    """Python 3.14 does not count the reference of a call's argument."""
    count = sys.getrefcount
    monkeypatch.setattr(sys, "getrefcount", lambda array: count(array) - uncounted)
    spares = runpy.run_path(scratch.__file__)["Spares"]()
    first = spares.take((2, 3))
    row = first[1]
    address = first.ctypes.data
    assert spares.take((2, 3)).ctypes.data != address
    del first
    assert spares.take((2, 3)).ctypes.data != address  # a view refers to it
    del row
    assert spares.take((2, 3)).ctypes.data == address
    assert spares.take((4, 3)).shape == (4, 3)
