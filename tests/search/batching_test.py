"""Batches of texts and pictures from many callers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from align_jax.errors import InputError
from align_jax.search import batching
from align_jax.search.batching import BatchingEncoder, Busy
from tests import tiny

GOOD, BAD, BREAKS = (tiny.draw(name, 90) for name in tiny.NAMES[:3])
PIXELS = 12 * 12  # of a drawing


class LengthModel:
    """Embeds a text as its length; counts the items of its batches; can be paused."""

    def __init__(self):
        self.pictures, self.batches, self.free = [], [], threading.Event()
        self.free.set()

    def encode_texts(self, texts):
        self.free.wait()
        self.batches.append(len(texts))
        return np.float32([[len(text)] for text in texts])

    def encode_images(self, images, unreadable):
        self.free.wait()
        self.pictures.append(len(images))
        if BREAKS in images:
            raise RuntimeError("the device is gone")
        unreadable |= {i: "no picture" for i, x in enumerate(images) if x == BAD}
        return np.float32([[-len(image)] for image in images])


def test_many_callers_share_batches_and_each_gets_its_own():
    model = LengthModel()
    encoder = BatchingEncoder(model, batch_size=8, most=1000)
    model.free.clear()
    with ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(encoder.encode_texts, ["a" * i, "b"]) for i in range(100)]
        while sum(map(len, encoder._waiting.values())) < 190:
            pass
        model.free.set()
        found = [future.result() for future in asked]
    assert [rows.tolist() for rows in found] == [[[i], [1]] for i in range(100)]
    assert sum(model.batches) == 200
    assert max(model.batches) == 8
    assert len(model.batches) < 35
    encoder.close()


def test_more_than_may_wait_is_refused_and_nothing_else():
    model = LengthModel()
    encoder = BatchingEncoder(model, batch_size=2, most=4)
    model.free.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(encoder.encode_texts, ["a", "b"])
        while encoder._waiting["texts"]:
            pass  # the thread has taken them
        second = pool.submit(encoder.encode_texts, ["c"] * 4)
        while len(encoder._waiting["texts"]) < 4:
            pass
        with pytest.raises(Busy, match="4 texts and pictures are waiting"):
            encoder.encode_texts(["d"])
        model.free.set()
        assert len(first.result()) == 2
        assert len(second.result()) == 4
    assert encoder.encode_texts(["dd"]).tolist() == [[2]]
    encoder.close()
    with pytest.raises(Busy):
        encoder.encode_texts(["e"])


def test_what_is_wrong_with_one_is_told_to_its_caller_alone():
    encoder = BatchingEncoder(LengthModel(), batch_size=4, most=100)
    with pytest.raises(InputError, match="no picture"):
        encoder.encode_images([BAD])
    with pytest.raises(RuntimeError, match="the device is gone"):
        encoder.encode_images([BREAKS])
    assert encoder.encode_images([GOOD]).tolist() == [[-len(GOOD)]]
    encoder.close()


def test_a_batch_s_pictures_have_no_more_pixels_than_are_decoded_at_once(monkeypatch):
    monkeypatch.setattr(batching, "PIXELS_AT_ONCE", 3 * PIXELS + 1)
    model = LengthModel()
    encoder = BatchingEncoder(model, batch_size=8, most=100)
    model.free.clear()
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(encoder.encode_images, [GOOD]) for _ in range(20)]
        while len(encoder._waiting["images"]) < 17:
            pass  # the thread has taken one to three
        model.free.set()
        assert all(future.result() == -len(GOOD) for future in asked)
    assert sum(model.pictures) == 20
    assert max(model.pictures) == 3
    monkeypatch.setattr(batching, "PIXELS_AT_ONCE", 1)  # a single picture always fits
    assert len(encoder.encode_images([GOOD, GOOD])) == 2
    assert model.pictures[-2:] == [1, 1]
    encoder.close()
