"""Writes the ids that transformers' tokenizers give hostile texts.

Usage: python -m tests.golden.make_library_tokenizers

Needs transformers 5.23 with tokenizers 0.23, sentencepiece 0.2.3 and protobuf. The
vocabularies are small and learned here, in the form of each model's published ones:
CLIP's byte-level BPE, SigLIP's Unigram with NFKC, and SigLIP 2's BPE with bytes. It
writes tests/golden/library_tokenizers.json.gz: files, texts and ids.
"""

import base64
import gzip
import io
import json
import pathlib
import tempfile

import sentencepiece
from transformers import CLIPTokenizer, Siglip2Tokenizer, SiglipTokenizer

from tests.input.hostile import PLAIN, hostile_texts
from tests.input.plain_tokenizers import learn_clip, merges_of

GOLDEN = pathlib.Path(__file__).with_name("library_tokenizers.json.gz")
MAX_TOKENS = 32


def learn(**options) -> bytes:
    """Learns a model of SentencePiece from the plain texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PLAIN * 3),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return model.getvalue()


def make_clip(folder: pathlib.Path) -> CLIPTokenizer:
    vocabulary, merges = learn_clip(PLAIN, 300)
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def make_siglip(folder: pathlib.Path) -> SiglipTokenizer:
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    model = learn(model_type="unigram", vocab_size=500, **special)
    path = folder / "spiece.model"
    path.write_bytes(model)
    return SiglipTokenizer(str(path))


def make_siglip2(folder: pathlib.Path) -> Siglip2Tokenizer:
    model = learn(
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        control_symbols=["<mask>"],
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    scores = {
        piece: pieces.get_score(i)
        for piece, i in ids.items()
        if not (pieces.is_byte(i) or pieces.is_control(i) or pieces.is_unknown(i))
    }
    return Siglip2Tokenizer(
        vocab=ids,
        merges=merges_of(scores),
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
    )


MAKERS = {"clip": make_clip, "siglip": make_siglip, "siglip2": make_siglip2}


def make_case(name: str, texts: list[str]) -> dict:
    """Returns the files of a folder, and the ids and special tokens of its class."""
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as kept:
        tokenizer = MAKERS[name](pathlib.Path(made))
        tokenizer.save_pretrained(kept)
        # The class reads a folder, as from the hub.
        tokenizer = type(tokenizer).from_pretrained(kept, split_special_tokens=True)
        ids = tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True
        )["input_ids"]
        files = {
            path.name: base64.b64encode(path.read_bytes()).decode()
            for path in sorted(pathlib.Path(kept).iterdir())
        }
    return {
        "files": files,
        "ids": ids,
        "pad_token": tokenizer.pad_token_id,
        "end_token": tokenizer.eos_token_id,
    }


def main() -> None:
    """Writes the golden file."""
    texts = hostile_texts()
    folders = {name: make_case(name, texts) for name in MAKERS}
    content = {"texts": texts, "max_tokens": MAX_TOKENS, "folders": folders}
    GOLDEN.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
