"""Learns a vocabulary of SentencePiece from the word counts (arXiv 1808.06226)."""

import io
import json
from collections.abc import Iterable, Iterator

from align_jax.errors import InputError
from align_jax.texts import NFKC_CASEFOLD

MODEL_FILE = "tokenizer.model"
SETTINGS_FILE = "tokenizer_config.json"  # beside it, as training reads it
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SETTINGS = {
    "normalisation": NFKC_CASEFOLD,
    "pad_token": PAD,
    "padding_side": "right",
    "add_bos_token": False,
    "add_eos_token": True,
    "eos_token": END,
}
THREADS = 16  # a fixed number, because sums of each thread decide the last digits
COVERAGE = 0.9995  # share of all characters that are pieces; others are bytes
LONGEST_WORD = 1000  # characters; longer words are left out


def learn_pieces(words: Iterable[tuple[str, int]], size: int, kind: str) -> bytes:
    """Learns a model of at most `size` pieces; equal words give an equal model.

    Pieces do not cross spaces, so that counted words suffice in place of texts. A
    character that is no piece is spelled in bytes, for each of which there is a piece.

    Args:
      words: pairs of a white-space separated word of the normalised texts and its
        count, in any order.
      size: maximum number of pieces, with the 3 special ones and the 256 bytes.
      kind: "unigram" (arXiv 1804.10959) or "bpe" (arXiv 1508.07909).

    Returns:
      The content of a .model file.

    Raises:
      InputError: the special pieces, the bytes and the alphabet alone exceed `size`.
    """
    import sentencepiece

    counted = sorted(words, key=lambda item: (-item[1], item[0]))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(counted),
            input_format="tsv",
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=COVERAGE,
            # Texts are normalised already, and training and search do it again.
            normalization_rule_name="identity",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=PAD,
            eos_piece=END,
            unk_piece=UNKNOWN,
            num_threads=THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(
            f"config.vocabulary_size is {size}, and SentencePiece cannot learn {kind}"
            f" pieces: {error}"
        ) from error
    return model.getvalue()


def count_pieces(model: bytes) -> int:
    """Returns the number of pieces of a .model file."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()


def settings_file() -> str:
    """Returns the content of the settings beside a model."""
    return json.dumps(SETTINGS, indent=2) + "\n"


def _lines(counted: Iterable[tuple[str, int]]) -> Iterator[str]:
    return (f"{word}\t{n}" for word, n in counted if len(word) <= LONGEST_WORD)
