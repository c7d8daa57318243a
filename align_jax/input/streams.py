"""Reads the records of training with tf.data, in the order of `record_order`.

A stream is one of the independent readers of `record_order`. It reads windows of
records, shuffles each, and gives its share of every batch.
"""

import contextlib
import functools
import itertools
import zlib
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from align_jax.input import record_order
from align_jax.input.captions import Captions
from align_jax.input.formats.dataset import Read, ShardPart
from align_jax.input.formats.kept_pictures import ABSENT, KeptPictures
from align_jax.input.phases import find_phase
from align_jax.input.teacher import choose_embeddings
from align_jax.input.tokenizer import Tokenizer
from align_jax.input.training_data import TrainingData


def read_records(
    data: TrainingData,
    seed: int,
    streams: range,
    start_step: int,
    tokenizer: Tokenizer | None,
) -> Generator[dict[str, Any]]:
    """Reads the records of some streams, one batch a step, to the end of a phase.

    Args:
      data: datasets that `open_training` opened.
      seed: seed of the order.
      streams: indices of the streams.
      start_step: number of the first batch, counted from 0.
      tokenizer: tokenizer of the text tower; None for labels.

    Yields:
      Batches, without end in the last phase: image, a list of `rows` encoded pictures;
      target (rows, L) int32 tokens or (rows,) int64 labels; texts (rows,) numbers of
      texts (or labels); dataset and shard (rows,) int64 indices; and the fields of
      `choose_embeddings`.
    """
    draws = data.draws_at(start_step)
    with contextlib.closing(KeptPictures()) as pictures:
        batches = _read_batches(
            data, seed, streams, start_step, tokenizer=tokenizer, pictures=pictures
        )
        for batch in batches.as_numpy_iterator():
            datasets = batch["dataset"].tolist()
            sources = [(row // draws, number) for row, number in enumerate(datasets)]
            kept = pictures.take(batch.pop("kept"), sources)
            both = zip(kept, batch["image"], strict=True)
            yield batch | {"image": [i if k is None else k for k, i in both]}


def _read_batches(
    data: TrainingData,
    seed: int,
    streams: range,
    start_step: int,
    *,
    tokenizer: Tokenizer | None,
    pictures: KeptPictures,
) -> tf.data.Dataset:
    """Returns the batches of `read_records`.

    Pictures that `pictures` keeps are empty, and "kept" (rows,) has their numbers.
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
    read = functools.partial(_stream, data, seed, pictures=pictures)
    groups = [read(stream, start, draws) for stream in streams]
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
    data: TrainingData,
    seed: int,
    stream: int,
    start: int,
    draws: int,
    *,
    pictures: KeptPictures,
) -> tf.data.Dataset:
    """Returns a stream's records after its first `start` draws, endless.

    They are dicts of the tensors of `_read_batches`, not tokenized, in groups of
    `draws`. One group is read before it is used.
    """
    read = functools.partial(_part, data, seed, stream, pictures=pictures)
    parts = [
        read(index, int(taken))
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
    data: TrainingData,
    seed: int,
    stream: int,
    index: int,
    taken: int,
    *,
    pictures: KeptPictures,
) -> tf.data.Dataset:
    """Returns a stream's records of dataset `index` after the first `taken`, endless.

    They are dicts of single elements of the tensors of `_read_batches`, not tokenized.
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
            "kept": records.get("kept", ABSENT * ones),
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
    window = data.config.shuffle_window
    read = functools.partial(_read_piece, dataset.read, window, pictures=pictures)
    # There is nothing to convert, and readers in Python would cause warnings.
    read = tf.autograph.experimental.do_not_convert(read)
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
    *,
    pictures: KeptPictures,
) -> tf.data.Dataset:
    """Reads one value of `_pieces`, shuffled by windows.

    Args:
      read: function of the dataset that reads its shards, see `Dataset`.
      window: number of records that are permuted together.
      shard: path, number of records and index of the shard.
      shuffle_key: (2,) key of the shuffle.
      span: first record, number of records and number of the first draw.
      pictures: owner of the pictures.

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

    part = ShardPart(path, begin * window, end, window, pictures)
    return read(part).enumerate(begin).map(permute)
