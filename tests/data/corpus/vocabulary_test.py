import random

import pytest

from align_jax.errors import InputError
from data.corpus.vocabulary import SPECIAL_TOKENS, learn_vocabulary

WORDS = [
    ("cats", 50),
    ("cat", 80),
    ("dogs", 40),
    ("dog", 70),
    ("red-hot", 20),
    ("猫", 9),
]


def test_special_tokens_come_first_and_frequent_words_are_whole():
    vocabulary = learn_vocabulary(WORDS, 200)
    assert vocabulary[:5] == SPECIAL_TOKENS
    assert {"cat", "dog", "red", "-", "猫", "##s"} <= set(vocabulary)
    assert len(vocabulary) == len(set(vocabulary)) <= 200


def test_the_order_of_the_counts_does_not_matter():
    shuffled = random.Random(0).sample(WORDS, len(WORDS))
    assert learn_vocabulary(shuffled, 200) == learn_vocabulary(WORDS, 200)


def test_words_of_a_small_corpus_are_whole_although_rare():
    rare = [("tree", 2), ("fish", 1)]
    assert {"tree", "fish"} <= set(learn_vocabulary(rare, 50))


@pytest.mark.parametrize("size", [33, 40, 60, 100])
def test_the_size_is_an_upper_bound(size):
    words = [(f"{a}{b}ing", 1 + ord(a) % 5) for a in "abcd" for b in "efgh"]
    assert len(learn_vocabulary(words, size)) <= size


def test_a_size_below_the_alphabet_is_refused():
    with pytest.raises(InputError, match=r"vocabulary_size is 10.* tokens alone are"):
        learn_vocabulary(WORDS, 10)
