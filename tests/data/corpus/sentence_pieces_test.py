import collections
import json
import random

import pytest
import sentencepiece

from align_jax.errors import InputError
from align_jax.input.tokenizer import open_tokenizer
from align_jax.models.bert import BertConfig
from align_jax.models.tokens import check_tokenizer
from align_jax.texts import normalise
from data.corpus.dataset import learn_files
from data.corpus.sentence_pieces import learn_pieces
from data.doctor.files import FileChecks
from tests.input.hostile import PLAIN

TEXTS = [normalise(text, 1000) for text in PLAIN]
WORDS = [*collections.Counter(" ".join(TEXTS).split()).items()]
KINDS = ("unigram", "bpe")


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_counts_does_not_matter(kind):
    model = learn_pieces(WORDS, 500, kind)
    shuffled = random.Random(0).sample(WORDS, len(WORDS))
    assert learn_pieces(shuffled, 500, kind) == model
    # Counts do.
    more = [(word, n + 50 * (word == "strasse")) for word, n in WORDS]
    assert learn_pieces(more, 500, kind) != model


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_come_in_the_size_asked_for_with_special_ones_first(kind):
    model = learn_pieces(WORDS, 500, kind)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert pieces.get_piece_size() <= 500
    assert pieces.id_to_piece([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    assert sum(map(pieces.is_byte, range(500 if kind == "bpe" else 300))) == 256
    assert pieces.encode("the", out_type=str) == ["\u2581the"]
    # Every text comes back: rare characters are bytes.
    for text in [*TEXTS, "𐐨 never seen ꙮ"]:
        assert pieces.decode(pieces.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_below_the_alphabet_is_refused(kind):
    with pytest.raises(InputError, match=f"vocabulary_size is 270, and .* {kind} piec"):
        learn_pieces(WORDS, 270, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_training_reads_the_files_and_bert_takes_their_padding(kind, tmp_path):
    size, files = learn_files(WORDS, 500, kind)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tokenizer = open_tokenizer(str(tmp_path / "tokenizer.model"), 16)
    assert (tokenizer.size, tokenizer.pad_token, tokenizer.end_token) == (size, 0, 1)
    # A query is normalised as the corpus was.
    raw, normal = tokenizer.encode(["\uff34\uff28\uff25 \u00a0Straße", "the strasse"])
    assert raw.tolist() == normal.tolist()
    check_tokenizer(tokenizer, BertConfig(size), "the file", "text_tower")
    with pytest.raises(InputError, match=rf"the file has {size} tokens, but text_towe"):
        check_tokenizer(tokenizer, BertConfig(size - 1), "the file", "text_tower")


def test_the_doctor_reads_a_model(tmp_path):
    size, files = learn_files(WORDS, 500, "unigram")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    fields = {"vocabulary_file": "tokenizer.model", "vocabulary_size": size}
    (tmp_path / "manifest.json").write_text(json.dumps(fields | {"shards": []}))

    def found():
        checks = FileChecks(tmp_path)
        checks.vocabulary()
        return [(finding.found, finding.wanted) for finding in checks.findings]

    assert found() == []
    (tmp_path / "tokenizer_config.json").unlink()
    ((one, wanted),) = found()
    assert one == "{}"
    assert "nfkc_casefold" in wanted
    (tmp_path / "tokenizer.model").write_bytes(files["tokenizer.model"][:-7])
    ((_, wanted),) = found()
    assert wanted == "a model of SentencePiece"
    _, smaller = learn_files(WORDS, 480, "unigram")
    for name, content in smaller.items():
        (tmp_path / name).write_bytes(content)
    ((one, wanted),) = found()
    assert (one, wanted) == ("480 tokens", str(size))
