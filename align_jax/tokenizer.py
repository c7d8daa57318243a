"""WordPiece tokenization inside tf.data, by tensorflow-text."""

import hashlib

import tensorflow as tf
import tensorflow_text as tf_text

from align_jax.errors import InputError

PAD, UNKNOWN, CLS, SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


class Tokenizer:
    """BERT's lower-cased WordPiece over a vocabulary file, one token a line.

    Attributes:
      size: tokens in the vocabulary.
      digest: SHA-256 of the file, hex.
    """

    def __init__(self, path: str, max_tokens: int):
        """Reads the vocabulary.

        Args:
          path: vocabulary file; its first token is [PAD].
          max_tokens: length of the token sequences, [CLS] and [SEP] included.

        Raises:
          InputError: the file is missing or lacks one of BERT's special tokens.
        """
        if not tf.io.gfile.exists(path):
            raise InputError(f"no vocabulary at {path}; data.build writes one")
        with tf.io.gfile.GFile(path, "rb") as file:
            content = file.read()
        vocabulary = content.decode().splitlines()
        missing = [t for t in (PAD, UNKNOWN, CLS, SEP) if t not in vocabulary]
        if missing or vocabulary[0] != PAD:
            raise InputError(
                f"{path} is not a BERT vocabulary: its first line is"
                f" {vocabulary[:1]} and it lacks {missing}; wanted {PAD} first and"
                f" {UNKNOWN}, {CLS}, {SEP} anywhere"
            )
        self.size = len(vocabulary)
        self.digest = hashlib.sha256(content).hexdigest()
        self._max_tokens = max_tokens
        self._cls = vocabulary.index(CLS)
        self._sep = vocabulary.index(SEP)
        self._wordpiece = tf_text.FastBertTokenizer(
            vocabulary, token_out_type=tf.int32, lower_case_nfd_strip_accents=True
        )

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Tokenizes texts (B,) to ids (B, max_tokens), 0 after [SEP].

        A text longer than max_tokens - 2 pieces is cut.
        """
        pieces = self._wordpiece.tokenize(texts)[:, : self._max_tokens - 2]
        rows = tf.shape(texts)[0]
        first, last = (tf.fill((rows, 1), token) for token in (self._cls, self._sep))
        ids = tf.concat([first, pieces, last], 1)
        return ids.to_tensor(shape=(None, self._max_tokens))
