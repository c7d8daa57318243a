"""WordPiece vocabulary from the corpus's own word counts, by tensorflow-text."""

import collections
from collections.abc import Iterable

from tensorflow_text.python.ops.bert_tokenizer import BasicTokenizer
from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def learn_vocabulary(words: Iterable[tuple[str, int]], size: int) -> list[str]:
    """Learns a vocabulary.

    Args:
      words: white-space separated words of the normalised texts and their counts.
      size: upper bound of the vocabulary; the learner stops at or below it.

    Returns:
      Tokens, the special ones first; [PAD] is token 0. Equal counts give an equal
      vocabulary whatever their order.
    """
    counted = sorted(words)
    spelled = [word for word, _ in counted]
    pieces = BasicTokenizer(lower_case=True).tokenize(spelled).to_list()
    counts: collections.Counter[str] = collections.Counter()
    for (_, count), split in zip(counted, pieces, strict=True):
        for piece in split:
            counts[piece.decode()] += count
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return wordpiece_tokenizer_learner_lib.learn(by_count, size, SPECIAL_TOKENS)
