"""Learns a WordPiece vocabulary from the word counts, with tensorflow-text."""

import bisect
import collections
from collections.abc import Iterable

from tensorflow_text.python.ops.bert_tokenizer import BasicTokenizer
from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib

from align_jax.errors import InputError

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def learn_vocabulary(words: Iterable[tuple[str, int]], size: int) -> list[str]:
    """Learns a WordPiece vocabulary of at most `size` tokens, as large as possible.

    The learner of tensorflow-text keeps the word pieces whose count reaches a
    threshold. The learner's search tries no threshold below 10 and may return more
    tokens than asked. So this function searches for the smallest threshold whose
    vocabulary has at most `size` tokens.

    The learner ignores words of more than 50 characters, and words with a character
    that is not among the 1,000 most frequent ones, which are the alphabet.

    Args:
      words: pairs of a white-space separated word of the normalised texts and its
        count, in any order.
      size: maximum number of tokens, special tokens included.

    Returns:
      The tokens, special ones first; [PAD] is token 0.

    Raises:
      InputError: the alphabet and the special tokens alone are more than `size`.
    """
    by_count = _split_words(words)
    highest = max((count for _, count in by_count), default=1)
    learned: dict[int, list[str]] = {}

    def fits(threshold: int) -> bool:
        learned[threshold] = wordpiece_tokenizer_learner_lib.learn(
            by_count,
            size,
            SPECIAL_TOKENS,
            upper_thresh=threshold,
            lower_thresh=threshold,
        )
        return len(learned[threshold]) <= size

    threshold = 1 + bisect.bisect_left(range(1, highest + 1), True, key=fits)
    if threshold > highest:
        raise InputError(
            f"config.vocabulary_size is {size}, but the characters of the corpus and"
            f" the special tokens alone are {len(learned[highest])}; raise it"
        )
    return learned[threshold]


def _split_words(words: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Splits words at punctuation and CJK characters, as BERT does, in lower case.

    Returns:
      (piece, count), sorted by count, highest first, then by piece.
    """
    counted = sorted(words)
    spelled = [word for word, _ in counted]
    pieces = BasicTokenizer(lower_case=True).tokenize(spelled).to_list()
    counts: collections.Counter[str] = collections.Counter()
    for (_, count), split in zip(counted, pieces, strict=True):
        for piece in split:
            counts[piece.decode()] += count
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
