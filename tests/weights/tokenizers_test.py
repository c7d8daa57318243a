"""Weights and runs keep any tokenizer; a tower takes only one with its ids."""

import collections
import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from align_jax.errors import InputError
from align_jax.input.tokenizer import open_tokenizer
from align_jax.input.wordpiece import WordPiece
from align_jax.models.bert import BertConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.efficientnet import EfficientNetConfig
from align_jax.models.tokens import check_tokenizer
from align_jax.models.transformer import TransformerConfig
from align_jax.texts import NONE, fold
from align_jax.weights.encoders import write_stablehlo
from align_jax.weights.folder import Weights, digest, fitting_tokenizer, read_weights
from align_jax.weights.source import open_weights
from align_jax.weights.vocabulary import check_copy, find_vocabulary, keep_copy
from data.corpus.dataset import learn_files
from tests import tiny
from tests.input.hostile import PLAIN
from tests.input.plain_tokenizers import learn_clip


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The files of CLIP's tokenizer and of a SentencePiece model."""
    folder = tmp_path_factory.mktemp("tokenizers")
    vocabulary, merges = learn_clip(PLAIN, 50)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_text(lines)
    words = collections.Counter(w for text in PLAIN for w in fold(text).split())
    _, files = learn_files(words.items(), 500, "unigram")
    (folder / "pieces").mkdir()
    for name, content in files.items():
        (folder / "pieces" / name).write_bytes(content)
    return {
        "clip": str(folder / "vocab.json"),
        "pieces": str(folder / "pieces" / "tokenizer.model"),
    }


STORED = {
    "clip": {"tokenizer.json"},
    "pieces": {"tokenizer.model", "tokenizer_config.json"},
}


def model_of(tokenizer):
    """A model whose text tower takes the tokenizer's ids."""
    tower = dataclasses.replace(
        TransformerConfig.smallest(),
        vocabulary_size=tokenizer.size,
        end_token=tokenizer.end_token,
        pad_token=tokenizer.pad_token,
    )
    return ModelConfig(EfficientNetConfig(**tiny.IMAGE_TOWER), tower)


@pytest.mark.parametrize("name", ["clip", "pieces"])
def test_weights_keep_any_tokenizer(paths, name, tmp_path):
    tokenizer = open_tokenizer(paths[name], 6)
    folder = tiny.write_model(
        tmp_path / "model", config=model_of(tokenizer), tokenizer=tokenizer
    )
    files = {path.name for path in pathlib.Path(folder).iterdir()}
    assert files == {"model.json", "weights.safetensors"} | STORED[name]
    weights = read_weights(folder)
    found = fitting_tokenizer(weights)
    assert (found.digest, found.max_tokens) == (tokenizer.digest, 6)
    np.testing.assert_array_equal(found.encode(PLAIN), tokenizer.encode(PLAIN))
    other = dataclasses.replace(weights, tokenizer=WordPiece(tiny.WORDS, 6))
    assert digest(other) != digest(weights) == digest(read_weights(folder))
    with pytest.raises(InputError, match=r"has (pad|end)_token \d, but text_tower\."):
        fitting_tokenizer(other)


@pytest.mark.parametrize("name", ["clip", "pieces"])
def test_a_run_keeps_any_tokenizer_and_goes_on_with_no_other(paths, name, tmp_path):
    tokenizer = open_tokenizer(paths[name], 6)
    keep_copy(str(tmp_path), tokenizer)
    assert {path.name for path in tmp_path.iterdir()} == STORED[name]
    check_copy(str(tmp_path), tokenizer)
    again = open_tokenizer(find_vocabulary(str(tmp_path), "named"), 6)
    assert again.digest == tokenizer.digest
    with pytest.raises(InputError, match=r"11 tokens \(WordPiece.* began with, .*padd"):
        check_copy(str(tmp_path), WordPiece(tiny.WORDS, 6))


def test_a_model_with_such_a_tokenizer_embeds_without_tensorflow(paths, tmp_path):
    for name, path in paths.items():
        tokenizer = open_tokenizer(path, 6)
        config = model_of(tokenizer)
        tiny.write_model(tmp_path / name, config=config, tokenizer=tokenizer)
    lines = f"""
import sys
absent = ["tensorflow", "tensorflow_text", "tensorflow_datasets", "clu"]
sys.modules.update(dict.fromkeys(absent))
import align_jax
for name in {[*paths]}:
    model = align_jax.load({str(tmp_path)!r} + "/" + name, batch_size=8)
    assert model.encode_texts(["a red cat", "two dogs"]).shape == (2, model.width)
"""
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", lines], check=True, cwd=root)


def test_an_export_holds_the_tokenizer(paths, tmp_path):
    tokenizer = open_tokenizer(paths["pieces"], 6)
    folder = tmp_path / "model"
    tiny.write_model(folder, config=model_of(tokenizer), tokenizer=tokenizer)
    write_stablehlo(open_weights(str(folder)), str(tmp_path / "programs"))
    again = open_tokenizer(str(tmp_path / "programs" / "tokenizer.model"), 6)
    assert again.digest == tokenizer.digest


def test_a_folder_of_an_earlier_version_names_its_normalisation(tmp_path):
    folder = pathlib.Path(tiny.write_model(tmp_path / "model"))
    described = json.loads((folder / "model.json").read_text())
    assert "normalisation" not in described
    plain = open_weights(str(folder))
    (folder / "model.json").write_text(json.dumps(described | {"normalisation": NONE}))
    weights = open_weights(str(folder))
    assert weights.tokenizer.tokens == tuple(tiny.WORDS)
    assert weights.tokenizer.normalisation == NONE
    assert digest(weights) != digest(plain)
    (folder / "model.json").write_text(json.dumps(described | {"normalisation": "x"}))
    with pytest.raises(
        InputError, match="normalisation is 'x'; known: none, nfkc_casefold"
    ):
        open_weights(str(folder))


def test_a_tower_takes_only_its_ids(paths):
    tokenizer = open_tokenizer(paths["clip"], 6)
    tower = model_of(tokenizer).text_tower
    check_tokenizer(tokenizer, tower, "the file", "text_tower")
    end = tokenizer.end_token
    for name, value, wanted in (
        (
            "vocabulary_size",
            end,
            f"has {end + 1} tokens, but text_tower.vocabulary_siz",
        ),
        (
            "pad_token",
            0,
            f"has pad_token {end}, but text_tower.pad_token is 0; a trans",
        ),
        (
            "end_token",
            7,
            f"has end_token {end}, but text_tower.end_token is 7; a trans",
        ),
    ):
        changed = dict(vars(tower)) | {name: value}
        with pytest.raises(InputError, match=wanted):
            check_tokenizer(tokenizer, _Fields(changed), "the file", "text_tower")


class _Fields:
    """The fields of a tower, unchecked."""

    def __init__(self, fields):
        vars(self).update(fields)


def test_tokens_alone_make_a_wordpiece():
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat")
    text = BertConfig(vocabulary_size=5, max_tokens=4, positions=4, layers=1, hidden=64)
    config = ModelConfig(EfficientNetConfig.smallest(), text)
    for kind, described in (("dual_encoder", config), ("text_tower", text)):
        made = Weights(kind, described, {}, tokenizer=tokens).tokenizer
        assert made.encode(["cat"]).tolist() == [[2, 4, 3, 0]]
    assert (
        Weights("image_tower", config.image_tower, {}, tokenizer=()).tokenizer is None
    )
    with pytest.raises(InputError, match="is not a BERT vocabulary"):
        Weights("text_tower", text, {}, tokenizer=("cat",))
