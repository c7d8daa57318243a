import functools

import numpy as np
import pyarrow.parquet as pq
import pytest

import align_jax
from align_jax.embed import saved
from align_jax.embed.saved import SavedEmbedder, content_id
from align_jax.errors import InputError
from align_jax.evaluate import evaluate
from align_jax.evaluation.runner import make_evaluators, run_evaluators
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect

NAMES = [f"picture {name}" for name in tiny.NAMES]
PICTURES = [tiny.draw(name, 110) for name in tiny.NAMES]


class CountingEncoder(FixedEncoder):
    """Records the pictures and texts that it embeds."""

    def __init__(self):
        super().__init__(perfect, perfect)
        self.asked = []

    def encode_images(self, pictures):
        self.asked += [f"picture {self.names[picture]}" for picture in pictures]
        return super().encode_images(pictures)

    def encode_texts(self, texts):
        self.asked += texts
        return super().encode_texts(texts)

    def project_texts(self, texts):
        self.asked += texts
        return super().project_texts(texts)


@pytest.fixture
def open_saved(tmp_path):
    """Returns a function that opens the saved embeddings with a new encoder."""

    def make(model="m"):
        encoder = CountingEncoder()
        return SavedEmbedder(encoder, str(tmp_path / "saved"), model), encoder

    return make


def test_nothing_is_embedded_twice_and_the_numbers_stay(open_saved):
    embedder, encoder = open_saved()
    first = embedder.encode_images(PICTURES[:5] + PICTURES[2:4])
    assert encoder.asked == NAMES[:5]
    np.testing.assert_array_equal(
        first, encoder.encode_images(PICTURES[:5] + PICTURES[2:4])
    )

    embedder, encoder = open_saved()
    again = embedder.encode_images(PICTURES[3:7])
    assert encoder.asked == NAMES[5:7]
    np.testing.assert_array_equal(again, encoder.encode_images(PICTURES[3:7]))


def test_kinds_and_models_are_kept_apart(open_saved):
    embedder, encoder = open_saved()
    unit, projected = embedder.encode_texts(["red"]), embedder.project_texts(["red"])
    np.testing.assert_array_equal(projected, 3 * unit)
    assert encoder.asked == ["red", "red"]
    for model, asked in (("m", []), ("other", ["red"])):
        embedder, encoder = open_saved(model)
        embedder.encode_texts(["red"])
        assert encoder.asked == asked


def test_many_are_written_as_several_files_that_others_can_read(
    open_saved, tmp_path, monkeypatch
):
    monkeypatch.setattr(saved, "ITEMS", 3)
    monkeypatch.setattr(saved, "ROWS", 5)
    few = functools.lru_cache(1)(saved._read.__wrapped__)
    monkeypatch.setattr(saved, "_read", few)
    found = np.concatenate(list(open_saved()[0].stream_images(PICTURES)))
    files = sorted((tmp_path / "saved" / "m" / "images").iterdir())
    tables = [pq.read_table(file).to_pydict() for file in files]
    assert sorted(len(table["id"]) for table in tables) == [6, 6]
    read = {
        name: row
        for table in tables
        for name, row in zip(table["id"], table["embedding"], strict=True)
    }
    for picture, row in zip(PICTURES, found, strict=True):
        np.testing.assert_array_equal(np.float32(read[content_id(picture)]), row)
    embedder, encoder = open_saved()
    np.testing.assert_array_equal(embedder.encode_images(PICTURES), found)
    assert encoder.asked == []


def test_what_was_written_before_a_run_ended_is_used(open_saved, monkeypatch):
    monkeypatch.setattr(saved, "ITEMS", 3)
    monkeypatch.setattr(saved, "ROWS", 3)
    embedder, _ = open_saved()
    stream = embedder.stream_images(PICTURES)
    next(stream), next(stream)
    stream.close()
    embedder, encoder = open_saved()
    embedder.encode_images(PICTURES)
    assert encoder.asked == NAMES[6:]


@pytest.mark.parametrize("broken", [1, 8, 11])
def test_an_unreadable_picture_has_its_index_among_all(
    open_saved, tmp_path, monkeypatch, broken
):
    monkeypatch.setattr(saved, "ITEMS", 5)
    embedder = align_jax.load(tiny.write_model(tmp_path / "model")).embedder
    embedder = SavedEmbedder(embedder, str(tmp_path / "saved"), "m")
    embedder.encode_images([PICTURES[n] for n in (0, 6, 10)])
    pictures = [*PICTURES[:broken], b"no picture", *PICTURES[broken:]]
    with pytest.raises(InputError, match=rf"^picture {broken} is no picture that"):
        embedder.encode_images(pictures)


def test_a_damaged_file_is_named(open_saved, tmp_path):
    open_saved()[0].encode_texts(["red"])
    (file,) = (tmp_path / "saved" / "m" / "texts").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=rf"{file.name} is damaged: .*; remove it"):
        open_saved()


def test_no_input_is_the_encoder_s_answer(open_saved):
    embedder, encoder = open_saved()
    encoder.encode_texts = lambda texts: np.zeros((len(texts), 7), np.float32)
    assert embedder.encode_texts([]).shape == (0, 7)


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_embedded(
    where, tmp_path
):
    (tmp_path / "file").write_text("x")
    fields = {
        "run": "evaluate",
        "checkpoint": tiny.write_model(tmp_path / "model"),
        "evaluators": {},
        "embeddings": str(tmp_path / where),
    }
    with pytest.raises(InputError, match=rf"{where}/\w+ cannot be written: "):
        evaluate(fields, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_evaluators_share_what_is_saved(open_saved, tmp_path):
    directory = tiny.write_evaluation(tmp_path / "test")
    data = {"directory": directory, "split": "test"}
    described = {
        "pairs": {"kind": "retrieval", **data},
        "colour": {"kind": "zero_shot", "prompts": f"{directory}/prompts.json", **data},
        "alike": {"kind": "neighbours", "index_split": "test", **data},
    }
    evaluators = make_evaluators(described)
    embedder, encoder = open_saved()
    expected = dict(run_evaluators(evaluators, FixedEncoder(perfect, perfect)))
    assert dict(run_evaluators(evaluators, embedder)) == expected
    assert sorted(encoder.asked) == sorted(set(encoder.asked))
    embedder, encoder = open_saved()
    assert dict(run_evaluators(evaluators, embedder)) == expected
    assert encoder.asked == []
