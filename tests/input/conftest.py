"""Files of tokenizers of the libraries `tokenizers` and `sentencepiece`."""

import collections
import json

import pytest
import sentencepiece

from align_jax.input.stored_tokenizer import special_token
from align_jax.texts import fold
from data.corpus.sentence_pieces import learn_pieces, settings_file
from tests.input.hostile import PLAIN
from tests.input.plain_tokenizers import SPACE, learn_clip, merges_of


@pytest.fixture(scope="session")
def token_files(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="session")
def clip_files(token_files):
    """CLIP's files: (path of vocab.json, ids by token, merges)."""
    vocabulary, merges = learn_clip(PLAIN, 300)
    (token_files / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (token_files / "merges.txt").write_text("\n".join(lines) + "\n")
    return str(token_files / "vocab.json"), vocabulary, merges


@pytest.fixture(scope="session")
def piece_models(token_files):
    """Models of SentencePiece: paths, scores of pieces and ids, by kind."""
    words = collections.Counter(w for text in PLAIN for w in fold(text).split())
    found = {}
    for kind in ("unigram", "bpe"):
        path = token_files / kind / "tokenizer.model"
        path.parent.mkdir()
        path.write_bytes(learn_pieces(words.items(), 700, kind))
        path.with_name("tokenizer_config.json").write_text(settings_file())
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        pieces = range(processor.get_piece_size())
        ids = {processor.id_to_piece(i): i for i in pieces}
        scores = {
            piece: processor.get_score(i)
            for piece, i in ids.items()
            if not (processor.is_byte(i) or processor.is_control(i) or i == 2)
        }
        found[kind] = str(path), scores, ids
    return found


def describe(kind, scores, ids):
    """The tokenizer.json of a SentencePiece model in the form of Gemma's or T5's."""
    added = [special_token(t, i) for i, t in enumerate(("<pad>", "</s>", "<unk>"))]
    if kind == "bpe":
        model = {"type": "BPE", "vocab": ids, "merges": merges_of(scores)}
        model |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    else:
        pieces = [[piece, scores.get(piece, 0.0)] for piece in ids]
        model = {"type": "Unigram", "vocab": pieces, "unk_id": 2, "byte_fallback": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": space,
        "pre_tokenizer": None,
        "post_processor": template,
        "decoder": None,
        "model": model,
    }


@pytest.fixture(scope="session")
def piece_jsons(token_files, piece_models):
    """Paths of tokenizer.json files with the pieces of `piece_models`, by kind."""
    found = {}
    for kind, (_, scores, ids) in piece_models.items():
        path = token_files / f"{kind}_json" / "tokenizer.json"
        path.parent.mkdir()
        path.write_text(json.dumps(describe(kind, scores, ids)))
        settings = {"pad_token": "<pad>", "padding_side": "right"}
        path.with_name("tokenizer_config.json").write_text(json.dumps(settings))
        found[kind] = str(path)
    return found
