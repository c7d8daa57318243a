import hashlib

import pytest
import tensorflow as tf

from align_jax.errors import InputError
from align_jax.tokenizer import Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "##s", "red", "cafe", ",", "猫"]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def test_ids_by_hand(vocabulary):
    texts = tf.constant(["Red cats, CAFÉ", "", "xyz 猫cat"])
    assert Tokenizer(str(vocabulary), 8)(texts).numpy().tolist() == [
        [2, 6, 4, 5, 8, 7, 3, 0],
        [2, 3, 0, 0, 0, 0, 0, 0],
        [2, 1, 9, 4, 3, 0, 0, 0],
    ]


def test_a_long_text_is_cut_and_still_ends_in_sep(vocabulary):
    ids = Tokenizer(str(vocabulary), 5)(tf.constant(["cat " * 20]))
    assert ids.numpy().tolist() == [[2, 4, 4, 4, 3]]


def test_size_and_digest_are_the_files(vocabulary):
    tokenizer = Tokenizer(str(vocabulary), 8)
    assert tokenizer.size == len(WORDS)
    assert tokenizer.digest == hashlib.sha256(vocabulary.read_bytes()).hexdigest()


def test_what_is_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match="no vocabulary at .*none.txt"):
        Tokenizer(str(tmp_path / "none.txt"), 8)
    path = tmp_path / "wrong.txt"
    path.write_text("cat\n[UNK]\n")
    with pytest.raises(InputError, match=r"first line is \['cat'\] and it lacks"):
        Tokenizer(str(path), 8)
