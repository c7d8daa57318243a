"""Yields training batches that depend on (seed, step), not on hosts and workers.

tf.data reads records in the order of `align_jax.input.record_order` and tokenizes
texts. Threads decode and augment the pictures, some batches ahead. Each host reads its
share of the streams. Resuming needs no saved state of the input.
"""

import collections
import functools
import hashlib
import itertools
import logging
import zlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from align_jax.errors import InputError
from align_jax.input import record_order
from align_jax.input.captions import Captions
from align_jax.input.formats.dataset import Read
from align_jax.input.image_batches import Encoded, augment_batches
from align_jax.input.phases import find_phase
from align_jax.input.teacher import choose_embeddings, take_embeddings
from align_jax.input.tokenizer import Tokenizer
from align_jax.input.training_data import TrainingData

Fields = dict[str, np.ndarray]  # (rows, ...) each

GREY = 127
FEW_PAIRS = 1000  # while there are fewer, replaced pairs are a share of this number


class TrainBatches(Iterator):
    """An endless iterator over this host's rows of the global batches.

    A batch is a dict of images (B / hosts, H, W, 3) uint8 and tokens (B / hosts, L)
    int32, or labels (B / hosts,) int32 if the datasets have labels, and of the
    embeddings of a teacher if they have one, see `take_embeddings`. A pair that cannot
    be decoded, or lacks a text, a label or an embedding, is replaced by the next good
    pair of its stream in the batch. If the stream has none, the picture is grey, and
    the other fields stay.

    Attributes:
      pairs: number of pairs that this host has yielded, with replaced ones.
      replaced: number of replaced pairs by reason.
    """

    def __init__(
        self,
        data: TrainingData,
        tokenizer: Tokenizer | None,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Begins to read.

        Args:
          data: result of `open_training` with the same process count.
          tokenizer: tokenizer of the text tower; None for labels.
          seed: seed of the order and of augmentation.
          start_step: number of the first batch, counted from 0.
          process_index: index of this host, 0 to `process_count` - 1.
          process_count: number of hosts, which divides the number of streams.

        Raises:
          ValueError: the datasets have texts, but `tokenizer` is None.
        """
        config = data.config
        per_host = config.streams // process_count
        self._streams = range(process_index * per_host, (process_index + 1) * per_host)
        self._data, self._seed, self._tokenizer = data, seed, tokenizer
        self._batches = augment_batches(
            self._encoded(start_step), config.workers or None
        )
        self._bad_shards: collections.Counter[str] = collections.Counter()
        self.pairs = 0
        self.replaced: collections.Counter[str] = collections.Counter()

    def __next__(self) -> Fields:
        """Returns the next batch.

        Raises:
          InputError: the share of replaced pairs is above `max_replaced`, or a shard is
            damaged.
        """
        with self._data.naming_damage():
            images, reasons, records = next(self._batches)
        for row, texts in enumerate(records["texts"]):
            reasons[row] = reasons[row] or ("" if texts else "no text")
        targets = records["target"].astype(np.int32)  # a writable copy
        if self._data.labelled:
            for row in map(int, np.flatnonzero(targets < 0)):
                reasons[row] = reasons[row] or "no label"
        name = "labels" if self._data.labelled else "tokens"
        batch = {"images": images, name: targets, **take_embeddings(records, reasons)}
        self.pairs += len(reasons)
        if any(reasons):
            self._replace(records, batch, reasons)
        return batch

    def _encoded(self, step: int) -> Iterator[Encoded]:
        """Yields the arguments of `augment_batches` from batch `step` on, endlessly."""
        data, seed = self._data, self._seed
        while True:  # each turn reads one phase
            phase = data.phases[find_phase(data.phases, step)]
            records = read_records(data, seed, self._streams, step, self._tokenizer)
            for record in records.as_numpy_iterator():
                keys = self._keys(step, data.draws_at(step))
                yield record["image"], keys, phase.preprocess, record
                step += 1

    def describe(self, step: int) -> list[dict]:
        """Reads the pairs of one batch again, to say where each is from.

        Args:
          step: number of the batch, counted from 0.

        Returns:
          One dict for each of this host's rows: name of the "dataset", path of the
          "shard", "picture_sha256" of the picture's file, and "tokens" or "labels".
        """
        data = self._data
        records = read_records(data, self._seed, self._streams, step, self._tokenizer)
        (batch,) = records.take(1).as_numpy_iterator()
        names = [*data.config.datasets]
        columns = (batch[n] for n in ("dataset", "shard", "image", "target"))
        return [
            {
                "dataset": names[dataset],
                "shard": data.datasets[dataset].shards[shard].path,
                "picture_sha256": hashlib.sha256(image).hexdigest(),
                "labels" if data.labelled else "tokens": target.tolist(),
            }
            for dataset, shard, image, target in zip(*columns, strict=True)
        ]

    def close(self) -> None:
        """Stops the threads."""
        self._batches.close()

    def _keys(self, step: int, draws: int) -> np.ndarray:
        """Returns keys (rows, 2): seed and step, and the row in the global batch."""
        rows = np.arange(draws * self._streams.start, draws * self._streams.stop)
        return np.stack([np.full(len(rows), self._seed * 2**32 + step), rows], 1)

    def _replace(self, records: Fields, batch: Fields, reasons: list[str]) -> None:
        """Replaces the pairs that have a reason, in place, and counts them."""
        draws = len(reasons) // len(self._streams)
        for row in [row for row, reason in enumerate(reasons) if reason]:
            stream = row // draws * draws
            following = [stream + (row + i) % draws for i in range(1, draws)]
            good = [other for other in following if not reasons[other]]
            batch["images"][row] = GREY
            for rows in batch.values() if good else ():
                rows[row] = rows[good[0]]
            self._count(records["dataset"][row], records["shard"][row], reasons[row])

    def _count(self, dataset: int, shard: int, reason: str) -> None:
        path = self._data.datasets[dataset].shards[shard].path
        if reason not in self.replaced:
            logging.warning("a pair of %s is replaced: %s", path, reason)
        self.replaced[reason] += 1
        self._bad_shards[path] += 1
        total, limit = self.replaced.total(), self._data.config.max_replaced
        if total > limit * max(self.pairs, FEW_PAIRS):
            (worst, count), *_ = self._bad_shards.most_common(1)
            counts = ", ".join(f"{n} x {why}" for why, n in self.replaced.most_common())
            raise InputError(
                f"{total} of {self.pairs} pairs cannot be used ({counts}), more than"
                f" input.max_replaced = {limit}; {count} of them are in {worst}: run"
                " `python -m data.doctor` on its folder"
            )


def read_records(
    data: TrainingData,
    seed: int,
    streams: range,
    start_step: int,
    tokenizer: Tokenizer | None,
) -> tf.data.Dataset:
    """Reads the records of some streams, one batch a step, to the end of a phase.

    Args:
      data: datasets that `open_training` opened.
      seed: seed of the order.
      streams: indices of the streams.
      start_step: number of the first batch, counted from 0.
      tokenizer: tokenizer of the text tower; None for labels.

    Returns:
      A dataset of batches, endless in the last phase: image (rows,) encoded pictures;
      target (rows, L) int32 tokens or (rows,) int64 labels; texts (rows,) numbers of
      texts (or labels); dataset and shard (rows,) int64 indices; and the fields of
      `choose_embeddings`.
    """
    start, draws = data.draws_before(start_step), data.draws_at(start_step)
    number = find_phase(data.phases, start_step)
    rows = draws * len(streams)

    def join(groups: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Joins the first two axes, streams and records."""
        return {
            name: tf.reshape(field, (rows, *field.shape[2:]))
            for name, field in groups.items()
        }

    # Records change threads and take turns in groups, which is faster than one by one.
    groups = [_stream(data, seed, stream, start, draws) for stream in streams]
    order = tf.data.Dataset.range(len(groups)).repeat()
    records = tf.data.Dataset.choose_from_datasets(groups, order)
    records = records.batch(len(groups), drop_remainder=True).map(join)
    if not data.labelled:
        if tokenizer is None:
            raise ValueError("datasets of texts want a tokenizer")
        length = data.phases[number].max_tokens
        tokenize = tokenizer if length is None else tokenizer.shortened(length)
        records = records.map(lambda r: r | {"target": tokenize(r["target"])})
    for following in data.phases[number + 1 : number + 2]:
        records = records.take(following.start - start_step)
    return records.prefetch(1)


def _stream(
    data: TrainingData, seed: int, stream: int, start: int, draws: int
) -> tf.data.Dataset:
    """Returns a stream's records after its first `start` draws, endless.

    They are dicts of the tensors of `read_records`, not tokenized, in groups of
    `draws`. One group is read before it is used.
    """
    parts = [
        _part(data, index, seed, stream, int(taken))
        for index, taken in enumerate(data.mixture.drawn(seed, stream, start))
    ]

    def choices() -> Iterator[np.ndarray]:
        """Yields indices in `parts`, for some draws at once."""
        drawn = data.mixture.draws(seed, stream, start)
        while True:
            yield np.array([*itertools.islice(drawn, record_order.CYCLE)])

    if len(parts) == 1:  # the same without calls to Python
        (records,) = parts
    else:
        signature = tf.TensorSpec((None,), tf.int64)
        order = tf.data.Dataset.from_generator(choices, output_signature=signature)
        records = tf.data.Dataset.choose_from_datasets(parts, order.unbatch())
    return records.batch(draws, drop_remainder=True).prefetch(1)


def _part(
    data: TrainingData, index: int, seed: int, stream: int, taken: int
) -> tf.data.Dataset:
    """Returns a stream's records of dataset `index` after the first `taken`, endless.

    They are dicts of single elements of the tensors of `read_records`, not tokenized.
    """
    number = zlib.crc32([*data.config.datasets][index].encode())
    config, dataset = [*data.config.datasets.values()][index], data.datasets[index]
    drawn = (
        int(data.mixture.drawn(seed, stream, data.draws_before(step))[index])
        for step, _ in config.captions
    )
    captions = Captions(config, [*drawn])

    def parse(shard: tf.Tensor, draws: tf.Tensor, records: dict) -> dict:
        images, targets = dataset.parse(records)
        ones = tf.ones_like(draws)
        target, texts, chosen = targets[0], ones, ones
        if not config.label_feature:
            key = ((seed * 2**32 + number) * ones, stream * 2**40 + draws)
            target, texts, chosen = captions.choose(targets, draws, tf.stack(key, 1))
        return choose_embeddings(records, chosen) | {
            "image": images,
            "target": target,
            "texts": texts,
            "dataset": index * ones,
            "shard": shard * ones,
        }

    integer = tf.TensorSpec((), tf.int64)
    signature = (
        (tf.TensorSpec((), tf.string), integer, integer),
        tf.TensorSpec((2,), tf.int64),
        (integer, integer, integer),
    )
    found = tf.data.Dataset.from_generator(
        functools.partial(_pieces, data, index, (seed, number), stream, taken),
        output_signature=signature,
    )
    read = functools.partial(_read_piece, dataset.read, data.config.shuffle_window)
    # Windows are parsed as a whole, and taken apart without copies.
    return found.flat_map(read).map(parse).unbatch()


def _pieces(
    data: TrainingData, index: int, key: tuple[int, int], stream: int, taken: int
) -> Iterator[tuple[tuple, np.ndarray, tuple[int, int, int]]]:
    """Yields the parts of a dataset's shards that a stream reads, without end.

    Args:
      data: datasets that `open_training` opened.
      index: index of the dataset.
      key: seed of the order.
      stream: number of the stream.
      taken: number of records that the stream has read already.

    Yields:
      (path, number of records, index) of a shard, the key (2,) of its shuffle, and
      (first record, number of records, number of the first draw) of the part.
    """
    shards = data.datasets[index].shards
    lengths, streams = [shard.records for shard in shards], data.config.streams
    for piece in record_order.pieces(lengths, key, streams, stream, taken):
        shuffle = np.random.default_rng((*key, piece.epoch, piece.shard))
        shuffle_key = shuffle.integers(2**62, size=2)
        shard = shards[piece.shard]
        span = (piece.first, piece.records, taken)
        data.reading[index, stream].append(shard.path)
        yield (shard.path, shard.records, piece.shard), shuffle_key, span
        taken += piece.records


def _read_piece(
    read: Read,
    window: int,
    shard: tuple[tf.Tensor, ...],
    shuffle_key: tf.Tensor,
    span: tuple[tf.Tensor, ...],
) -> tf.data.Dataset:
    """Reads one value of `_pieces`, shuffled by windows.

    Args:
      read: function of the dataset that reads its shards, see `Dataset`.
      window: number of records that are permuted together.
      shard: path, number of records and index of the shard.
      shuffle_key: (2,) key of the shuffle.
      span: first record, number of records and number of the first draw.

    Returns:
      A dataset of windows: index of the shard, numbers of the draws (N,) int64, and the
      fields of the N records that are used, in order.
    """
    path, records, index = shard
    first, count, draw = span
    begin, last = first // window, first + count
    end = tf.minimum(records, -(-last // window) * window)

    def permute(number: tf.Tensor, group: dict[str, tf.Tensor]) -> tuple:
        window_key = shuffle_key + tf.stack([tf.constant(0, tf.int64), number])
        start = number * window
        order = tf.range(tf.minimum(end - start, window))
        order = tf.random.experimental.stateless_shuffle(order, window_key)
        used = order[tf.maximum(first - start, 0) : last - start]
        picked = {name: tf.gather(field, used) for name, field in group.items()}
        drawn = draw + tf.maximum(start - first, 0)
        return index, drawn + tf.range(tf.size(used, tf.int64)), picked

    return read(path, begin * window, end, window).enumerate(begin).map(permute)
