"""Embeds the texts and pictures of many callers together, in few batches."""

import collections
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from align_jax.errors import InputError
from align_jax.search.queries import TolerantEncoder
from align_jax.search.uploads import MAX_PIXELS, count_pixels

# The limit of a batch, since its pictures are decoded at the same time. A transparent
# picture takes some 50 bytes per pixel while it is laid over its background.
PIXELS_AT_ONCE = MAX_PIXELS
GATHER_SECONDS = 0.003  # for which an incomplete batch waits for more


class Busy(Exception):
    """Too many texts and pictures are waiting, or the encoder is closed."""


class BatchingEncoder:
    """An encoder for many threads; a single internal thread uses the devices.

    A call with one or more texts or pictures returns when all of them are embedded.
    Items that arrive while a batch runs form the next batch; text and picture batches
    alternate. The pictures of a batch have at most PIXELS_AT_ONCE pixels together,
    unless the batch is a single picture.
    """

    def __init__(self, model: TolerantEncoder, batch_size: int, most: int) -> None:
        """Starts the thread.

        Args:
          model: encoder that only the internal thread calls.
          batch_size: largest number of items in a batch.
          most: largest number of items that may wait, over all calls.
        """
        self._model, self._batch_size, self._most = model, batch_size, most
        self._waiting: dict[str, collections.deque] = {
            "texts": collections.deque(),
            "images": collections.deque(),
        }
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds N texts as (N, D) of unit length.

        Raises:
          Busy: the queue has no room for N more items, or the encoder is closed.
        """
        return self._encode("texts", texts, [0] * len(texts))

    def encode_images(self, images: Sequence[bytes]) -> np.ndarray:
        """Embeds N picture files as (N, D) of unit length.

        Raises:
          Busy: the queue has no room for N more items, or the encoder is closed.
          InputError: one of the pictures cannot be read.
        """
        return self._encode("images", images, [*map(count_pixels, images)])

    def close(self) -> None:
        """Refuses further items, and returns when all waiting ones are embedded."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _encode(self, kind: str, items: Sequence, pixels: Sequence[int]) -> np.ndarray:
        futures: list[Future[np.ndarray]] = [Future() for _ in items]
        with self._changed:
            waiting = sum(map(len, self._waiting.values()))
            if self._closed or waiting + len(items) > self._most:
                raise Busy(f"{waiting} texts and pictures are waiting")
            self._waiting[kind].extend(zip(items, futures, pixels, strict=True))
            self._changed.notify()
        return np.stack([future.result() for future in futures])

    def _work(self) -> None:
        while True:
            with self._changed:
                while not any(self._waiting.values()) and not self._closed:
                    self._changed.wait()
                if not any(self._waiting.values()):
                    return
                if sum(map(len, self._waiting.values())) < self._batch_size:
                    self._changed.wait(GATHER_SECONDS)
            for kind, waiting in self._waiting.items():
                with self._changed:
                    batch = self._take(waiting)
                if batch:
                    self._compute(kind, batch)

    def _take(self, waiting: collections.deque) -> list[tuple]:
        """Removes the next batch from the waiting items, and returns it.

        An item is a tuple: the text or picture file, its future, its number of pixels.
        """
        batch: list[tuple] = []
        pixels = 0
        while waiting and len(batch) < self._batch_size:
            pixels += waiting[0][2]
            if batch and pixels > PIXELS_AT_ONCE:
                break
            batch.append(waiting.popleft())
        return batch

    def _compute(self, kind: str, batch: list[tuple]) -> None:
        items = [item for item, _, _ in batch]
        unreadable: dict[int, str] = {}
        try:
            if kind == "texts":
                found = self._model.encode_texts(items)
            else:
                found = self._model.encode_images(items, unreadable)
        except Exception as error:  # the callers handle it; the thread goes on
            for _, future, _ in batch:
                future.set_exception(error)
            return
        for row, (_, future, _) in enumerate(batch):
            if row in unreadable:
                reason = re.sub(r"^picture \d+", "the picture", unreadable[row])
                future.set_exception(InputError(reason))
            else:
                future.set_result(found[row])
