"""Draws the text of a pair: by weights of features, among several, cut or complete."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    from align_jax.input.datasets import DatasetConfig

# A sentence ends with one of .!?… and perhaps closing quotes or brackets before white
# space, or with a full stop, ! or ? of Chinese. With "(?s)" a dot is any character.
FIRST_SENTENCE = (
    r"(?s)^(.*?(?:[.!?\x{2026}][\"')\]\x{201D}\x{2019}]*\s"
    r"|[\x{3002}\x{FF01}\x{FF1F}])).*$"
)
OF_FEATURE, OF_LENGTH = 1, 2  # streams of random numbers beside that of a list's texts


class Captions:
    """Draws texts of a dataset's records in one stream of records."""

    def __init__(self, config: "DatasetConfig", starts: Sequence[int]) -> None:
        """Prepares the weights.

        Args:
          config: config of the dataset.
          starts: number of the stream's draws from this dataset before each phase of
            `config.captions`.
        """
        self._starts = starts
        names = config.targets
        self._weights = [
            [float(weights.get(name, 0)) for name in names]
            for _, weights in config.captions
        ]
        self._first_sentence = config.first_sentence

    def choose(
        self,
        features: Sequence[tf.Tensor | tf.RaggedTensor],
        draws: tf.Tensor,
        keys: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draws a text of each of N records.

        Args:
          features: one text (N,) or the texts (N, None) of each feature.
          draws: (N,) int64 numbers of the draws from the dataset in its stream.
          keys: (N, 2) int64 keys of these draws' random numbers.

        Returns:
          The texts (N,), "" where there is none, the numbers (N,) int32 of texts among
          which they were drawn, and the indices (N,) int32 of the texts among those of
          all features of a record.
        """

        def choose_each() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return tf.map_fn(
                lambda row: self._choose(*row),
                ([*features], draws, keys),
                fn_output_signature=(tf.string, tf.int32, tf.int32),
            )

        if len(features) > 1 or self._first_sentence:
            return choose_each()
        (texts,) = features
        if isinstance(texts, tf.Tensor):
            ones = tf.ones_like(draws, tf.int32)
            return texts, ones, ones - 1
        counts = tf.cast(texts.row_lengths(), tf.int32)
        # Records that have one text need no random numbers, which are slow.
        return tf.cond(
            tf.reduce_max(counts) < 2,
            lambda: (texts.to_tensor(shape=(None, 1))[:, 0], counts, 0 * counts),
            choose_each,
        )

    def _choose(
        self, features: Sequence[tf.Tensor], draw: tf.Tensor, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draws a text () of one record; see `choose`."""
        if len(features) == 1 and not features[0].shape.rank:
            text, count, index = features[0], tf.size(features[0]), tf.constant(0)
        else:
            text, count, index = self._choose_text(features, draw, key)
        if self._first_sentence:
            part = _uniform(key, OF_LENGTH) < self._first_sentence
            text = tf.cond(part, lambda: cut_sentence(text), lambda: text)
        return text, count, index

    def _choose_text(
        self, features: Sequence[tf.Tensor], draw: tf.Tensor, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        texts = [tf.reshape(feature, [-1]) for feature in features]
        counts = tf.stack([tf.size(part) for part in texts])  # (features,)
        chosen = tf.constant(0)
        if len(texts) > 1:
            starts = tf.constant(self._starts, tf.int64)
            phase = tf.searchsorted(starts, [draw], "right")[0] - 1
            weights = tf.gather(tf.constant(self._weights, tf.float64), phase)
            sums = tf.cumsum(tf.where(counts > 0, weights, 0))
            drawn = _uniform(key, OF_FEATURE) * sums[-1]
            chosen = tf.math.count_nonzero(sums <= drawn, dtype=tf.int32)
        # Without a text of positive weight, the feature after the last one is chosen.
        count = tf.concat([counts, [0]], 0)[chosen]
        number = tf.random.stateless_uniform((), key, 0, tf.maximum(count, 1), tf.int32)
        index = tf.reduce_sum(counts[:chosen]) + number
        return tf.concat([*texts, [""]], 0)[index], count, index


def cut_sentence(text: tf.Tensor) -> tf.Tensor:
    """Returns the first sentence of a text (), without white space at its ends."""
    return tf.strings.strip(tf.strings.regex_replace(text, FIRST_SENTENCE, r"\1"))


def _uniform(key: tf.Tensor, stream: int) -> tf.Tensor:
    """Returns a random number () float64 in [0, 1) of one of the streams of a key."""
    key = tf.random.experimental.stateless_fold_in(key, stream)
    return tf.random.stateless_uniform((), key, dtype=tf.float64)
