import random

from data.vocabulary import SPECIAL_TOKENS, learn_vocabulary

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
