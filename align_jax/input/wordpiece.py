"""Tokenizes texts as BERT's uncased models do, in Python or inside tf.data.

Both forms give the same ids. Python's needs no TensorFlow; tf.data's needs no
interpreter lock. A vocabulary that was made from normalised texts is used with
normalised texts: then each character is replaced as `align_jax.texts` and BERT together
replace it.

Without that, the ids equal those of Hugging Face. A table, bert_characters.txt, holds
the change that Hugging Face's `tokenizers` 0.23 makes to each character (dropped,
lower-cased without accents, set apart, ...). So BERT's ids do not depend on any
library's version of Unicode. Two differences remain:

* A text cannot hold special tokens: "[SEP]" in a text is three words, as with Hugging
  Face's `split_special_tokens=True`. By default Hugging Face reads it as the special
  token, so that a text from the web could end the sequence or hold padding.
* Hugging Face also sorts consecutive combining marks. Nearly all of them are dropped
  afterwards; the 83 others (Glagolitic, musical notation, ...) keep their written order
  here.
"""

import copy
import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from align_jax.errors import InputError
from align_jax.input.characters import replacements, split_words
from align_jax.input.stored_tokenizer import TOKENIZER_FILE, VOCABULARY_FILE, as_json
from align_jax.input.wordpiece_files import (
    CLS,
    LONGEST_WORD,
    PAD,
    SEP,
    UNKNOWN,
    find_normalisation,
    write_tokenizer,
)

if TYPE_CHECKING:
    import tensorflow as tf

HEAD_BYTES = 16  # per token, where a long text is first cut; enough for most texts
# Characters beyond these change no id: white space after white space, and the rest of a
# word that is too long in any case.
SPACES = r"[ \t\n\r]+"
ENDLESS_WORD = rf"([0-9A-Za-z]{{{LONGEST_WORD + 1}}})[0-9A-Za-z]+"
CACHED_WORDS = 2**16  # words whose pieces are kept in memory


class WordPiece:
    """BERT's lower-casing WordPiece tokenizer for a vocabulary.

    The attributes of the contract `Tokenizer`, and:

    Attributes:
      tokens: tokens in the order of their ids.
      normalisation: the step before BERT's own ones: NFKC_CASEFOLD or NONE of
        `align_jax.texts`.
      digest: SHA-256 of the tokens, one a line, in hexadecimal digits. Where the
        normalisation is not that of `find_normalisation`, one more line names it.
    """

    pad_token = 0
    end_token: int | None

    def __init__(
        self,
        vocabulary: Sequence[str],
        max_tokens: int,
        source: str = "the vocabulary",
        normalisation: str | None = None,
    ) -> None:
        """Prepares the vocabulary.

        Args:
          vocabulary: tokens in the order of their ids, [PAD] first.
          max_tokens: length of the token sequences, [CLS] and [SEP] included.
          source: origin of the vocabulary, for messages.
          normalisation: normalisation of the texts; None for that of
            `find_normalisation`.

        Raises:
          InputError: the vocabulary lacks one of BERT's special tokens, or its first
            token is not [PAD].
        """
        missing = [t for t in (PAD, UNKNOWN, CLS, SEP) if t not in vocabulary]
        if missing or vocabulary[0] != PAD:
            raise InputError(
                f"{source} is not a BERT vocabulary: its first token is"
                f" {list(vocabulary[:1])} and it lacks {missing}; wanted {PAD} first"
                f" and {UNKNOWN}, {CLS}, {SEP} anywhere"
            )
        self.tokens = tuple(vocabulary)
        self.size = len(vocabulary)
        lines = "".join(token + "\n" for token in vocabulary)
        usual = find_normalisation(vocabulary)
        self.normalisation = normalisation or usual
        if self.normalisation != usual:
            lines += self.normalisation + "\n"
        self.digest = hashlib.sha256(lines.encode()).hexdigest()
        self.max_tokens = max_tokens
        self._cls = vocabulary.index(CLS)
        self._sep = self.end_token = vocabulary.index(SEP)
        self._id_of = {token: place for place, token in enumerate(vocabulary)}
        self._longest = max(map(len, vocabulary))
        self._pieces = functools.lru_cache(CACHED_WORDS)(self._split_word)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Tokenizes texts (B) to int32 ids (B, max_tokens).

        The ids of a text are [CLS], its word pieces, [SEP] and zeros. A text longer
        than max_tokens - 2 pieces is cut.
        """
        ids = np.zeros((len(texts), self.max_tokens), np.int32)
        most = self.max_tokens - 2
        for row, text in enumerate(texts):
            pieces: list[int] = []
            for word in text.translate(replacements(self.normalisation)).split():
                pieces += self._pieces(word)
                if len(pieces) >= most:
                    break
            found = [self._cls, *pieces[:most], self._sep]
            ids[row, : len(found)] = found
        return ids

    def shortened(self, max_tokens: int) -> "WordPiece":
        """Returns this tokenizer with another length of the token sequences."""
        other = copy.copy(self)
        other.max_tokens = max_tokens
        return other

    def files(self) -> dict[str, bytes]:
        """Returns the file that stores this tokenizer, by its name.

        It holds the tokens, one a line. If a token has a line break, or the tokens do
        not imply the normalisation, it is a tokenizer.json.
        """
        breaks = {"\n", "\r"} & {*"".join(self.tokens)}
        if breaks or self.normalisation != find_normalisation(self.tokens):
            return self.exported()
        return {VOCABULARY_FILE: "".join(f"{t}\n" for t in self.tokens).encode()}

    def exported(self) -> dict[str, bytes]:
        """Returns a tokenizer.json for Hugging Face's library `tokenizers`."""
        described = write_tokenizer(self.tokens, self.normalisation)
        return {TOKENIZER_FILE: as_json(described)}

    def __str__(self) -> str:
        return f"{self.size} tokens (WordPiece, normalisation {self.normalisation})"

    def _split_word(self, word: str) -> list[int]:
        """Returns the ids of a word's pieces, each the longest that the rest allows."""
        unknown = [self._id_of[UNKNOWN]]
        if len(word) > LONGEST_WORD:
            return unknown
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = self._id_of.get(prefix + word[start:end])
                if piece is not None:
                    break
            else:
                return unknown
            pieces.append(piece)
            start = end
        return pieces

    @functools.cached_property
    def _wordpiece(self) -> Any:
        import tensorflow as tf
        import tensorflow_text as tf_text

        with tf.init_scope():  # its tensors must not belong to a traced graph
            return tf_text.FastWordpieceTokenizer(
                self.tokens,
                max_bytes_per_word=4 * LONGEST_WORD,
                token_out_type=tf.int32,
                no_pretokenization=True,
            )

    def __call__(self, texts: "tf.Tensor") -> "tf.Tensor":
        """Tokenizes UTF-8 texts (B,) to the ids (B, max_tokens) of `encode`.

        Bytes that are not UTF-8 are dropped.
        """
        import tensorflow as tf

        is_long = tf.strings.length(texts) > HEAD_BYTES * self.max_tokens
        texts = tf.cond(tf.reduce_any(is_long), lambda: self._cut(texts), lambda: texts)
        return self._ids(self._split(texts))

    def _cut(self, texts: "tf.Tensor") -> "tf.Tensor":
        """Cuts long texts (B,) where the rest cannot change their ids.

        A word has one piece or more, so that max_tokens - 2 words suffice. Only the
        last word of a cut text may be incomplete. So a text is long enough if it has
        one word more than that.
        """
        import tensorflow as tf

        def is_too_short(size: tf.Tensor, texts: tf.Tensor) -> tf.Tensor:
            cut = tf.boolean_mask(texts, tf.strings.length(texts) > size)
            words = self._split(tf.strings.substr(cut, 0, size)).row_lengths()
            return tf.reduce_any(words < self.max_tokens - 1)

        def shorten(texts: tf.Tensor) -> tf.Tensor:
            texts = tf.strings.regex_replace(texts, SPACES, " ")
            return tf.strings.regex_replace(texts, ENDLESS_WORD, r"\1")

        size = tf.constant(HEAD_BYTES * self.max_tokens)
        grows = is_too_short(size, texts)
        texts = tf.cond(grows, lambda: shorten(texts), lambda: texts)
        size, texts = tf.while_loop(
            is_too_short, lambda s, t: (4 * s, t), (size, texts)
        )
        return tf.strings.substr(texts, 0, size)

    def _split(self, texts: "tf.Tensor") -> "tf.RaggedTensor":
        return split_words(texts, self.normalisation)

    def _ids(self, words: "tf.RaggedTensor") -> "tf.Tensor":
        """Converts words (B, words) to int32 ids (B, max_tokens)."""
        import tensorflow as tf

        too_long = tf.strings.length(words.values, unit="UTF8_CHAR") > LONGEST_WORD
        known = tf.where(too_long, UNKNOWN, words.values)
        pieces = words.with_values(self._wordpiece.tokenize(known)).merge_dims(1, 2)
        pieces = pieces[:, : self.max_tokens - 2]
        rows = words.nrows(tf.int32)
        first, last = (tf.fill((rows, 1), token) for token in (self._cls, self._sep))
        ids = tf.concat([first, pieces, last], 1)
        return ids.to_tensor(shape=(None, self.max_tokens))
