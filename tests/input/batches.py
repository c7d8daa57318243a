"""Training batches of small datasets, whose tokens are the numbers in the texts."""

import itertools

import numpy as np
import tensorflow as tf

from align_jax.input.datasets import DatasetConfig
from align_jax.input.phases import Phase
from align_jax.input.pipeline import TrainBatches
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.training_data import InputConfig, open_training

LENGTHS = [30, 20, 25, 21]
PREPROCESS = PreprocessConfig(resize=18, image_size=16, random_background=True)


class NumberReader:
    """Replaces the tokenizer: its token is the number at the end of a text, or -1."""

    def __call__(self, texts):
        last = tf.where(texts == "", "-1", tf.strings.regex_replace(texts, ".* ", ""))
        return tf.strings.to_number(last, tf.int32)[:, None]


def open_batches(directory, start=0, seed=0, host=0, hosts=1, batch=8, **fields):
    parts = directory if isinstance(directory, dict) else {"tiny": directory}
    named = {
        name: part if isinstance(part, DatasetConfig) else DatasetConfig(part)
        for name, part in parts.items()
    }
    fields = {"streams": 2, "shuffle_window": 8} | fields
    config = InputConfig(named, PREPROCESS, **fields)
    data = open_training(config, (Phase(0, batch, PREPROCESS),), hosts)
    return TrainBatches(
        data,
        NumberReader(),
        seed,
        start_step=start,
        process_index=host,
        process_count=hosts,
    )


def batches(directory, count, *args, **fields):
    drawn = open_batches(directory, *args, **fields)
    found = list(itertools.islice(drawn, count))
    drawn.close()
    return found


def numbers(drawn):
    return [int(n) for batch in drawn for n in batch["tokens"][:, 0]]


def assert_equal(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine["tokens"], theirs["tokens"])
        np.testing.assert_array_equal(mine["images"], theirs["images"])
