import dataclasses
import json

import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.input.normalizers import BERT
from align_jax.input.wordpiece import WordPiece
from align_jax.input.wordpiece_files import MODEL
from align_jax.models.parameters import flatten, tower_shapes, variable_shapes
from align_jax.texts import NONE
from align_jax.training.pretrain_config import PretrainConfig
from align_jax.training.run_config import Initial
from align_jax.training.train_state import create_state
from align_jax.weights.folder import Weights, write_weights
from align_jax.weights.initialize import place_arrays, read_initial
from align_jax.weights.source import open_weights
from tests import tiny


@pytest.fixture
def config(tmp_path):
    return read_config(PretrainConfig, tiny.make_run(tmp_path))


def read(config, **sources):
    config = dataclasses.replace(config, initialize=Initial(**sources))
    return read_initial(config, config.make_tokenizer())


def write_tower(folder, kind, config, vocabulary=(), normalisation=None):
    draw = np.random.default_rng(0)
    arrays = {
        path: draw.normal(size=shape).astype(np.float32)
        for path, shape in tower_shapes(kind, config).items()
    }
    tokenizer = None
    if vocabulary:
        length = config.max_tokens
        tokenizer = WordPiece(vocabulary, length, normalisation=normalisation)
    weights = Weights(
        kind,
        config,
        arrays,
        tokenizer=tokenizer,
    )
    write_weights(weights, str(folder))
    return arrays


def test_towers_take_the_place_of_random_ones_and_nothing_else_changes(
    config, tmp_path, mesh_of
):
    top = dataclasses.replace(config.model.image_tower, top_conv=True)
    image = write_tower(tmp_path / "image", "image_tower", top)
    text = write_tower(
        tmp_path / "text", "text_tower", config.model.text_tower, tiny.WORDS
    )
    arrays = read(
        config, image_tower=str(tmp_path / "image"), text_tower=str(tmp_path / "text")
    )
    state = create_state(config.make_plan(mesh_of(8)))
    placed = place_arrays(state, arrays)
    before, after = (flatten(s.own_variables) for s in (state, placed))
    assert before.keys() == after.keys()
    for path, array in after.items():
        expected = (image | text).get(path, before[path])
        np.testing.assert_array_equal(array, expected)
        assert array.sharding == before[path].sharding
    assert ("params", "image_tower", "top", "kernel") in image


def test_a_tower_of_another_size_kind_or_vocabulary_is_refused(config, tmp_path):
    wider = dataclasses.replace(config.model.image_tower, width=0.5)
    write_tower(tmp_path / "image", "image_tower", wider)
    folder = str(tmp_path / "image")
    with pytest.raises(
        InputError, match=r"depthwise_norm.mean is \(96,\), wanted \(48,\)"
    ):
        read(config, image_tower=folder)
    with pytest.raises(InputError, match=r"text_tower is .*, which is one image_tower"):
        read(config, text_tower=folder)
    words = [*tiny.WORDS, "more"]
    write_tower(tmp_path / "text", "text_tower", config.model.text_tower, words)
    with pytest.raises(InputError, match=r"has 11 tokens .* is not the vocabulary of"):
        read(config, text_tower=str(tmp_path / "text"))


def test_a_tower_of_pixels_of_another_scale_is_refused(config, tmp_path):
    folder = tiny.write_model(tmp_path / "model")
    model = dataclasses.replace(open_weights(folder).config, pixel_std=(0.2, 0.2, 0.3))
    with pytest.raises(InputError, match=r"std is \(0.2, 0.2, 0.3\), but .* was t"):
        read(dataclasses.replace(config, model=model), image_tower=folder)


def test_a_tower_of_another_form_is_refused(config, tmp_path):
    """Neither padding nor strides show in a shape."""
    tower, folder = config.model.image_tower, str(tmp_path / "image")
    write_tower(tmp_path / "image", "image_tower", tower)
    rows = [list(row) for row in tower.rows]
    rows[0][2] = 3 - rows[0][2]  # 1 becomes 2, and 2 becomes 1
    for fields, message in (
        ({"padding": "keras"}, "image_tower.padding is keras, but .* with same"),
        ({"stages": tuple(map(tuple, rows))}, "image_tower.strides is .* with "),
    ):
        other = dataclasses.replace(tower, **fields)
        model = dataclasses.replace(config.model, image_tower=other)
        with pytest.raises(InputError, match=message):
            read(dataclasses.replace(config, model=model), image_tower=folder)


def test_texts_are_normalised_as_in_the_training_of_the_weights(config, tmp_path):
    folder = str(tmp_path / "text")
    tower = config.model.text_tower
    arrays = write_tower(folder, "text_tower", tower, tiny.WORDS, NONE)
    with pytest.raises(InputError, match=r"nfkc_casefold.* which .*normalisation none"):
        read(config, text_tower=folder)
    ids = {word: index for index, word in enumerate(tiny.WORDS)}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"normalizer": BERT, "model": MODEL | {"vocab": ids}}))
    same = dataclasses.replace(config, vocabulary=str(path))
    assert read(same, text_tower=folder).keys() == arrays.keys()


def test_a_whole_model_takes_the_place_of_everything(config, tmp_path):
    folder = tiny.write_model(tmp_path / "model")
    fitting = dataclasses.replace(config, model=open_weights(folder).config)
    arrays = read(fitting, model=folder)
    assert arrays.keys() == variable_shapes(fitting.model).keys()
    tower = config.model.image_tower
    wider = dataclasses.replace(
        config.model, image_tower=dataclasses.replace(tower, width=0.5)
    )
    with pytest.raises(InputError, match="model does not fit: "):
        read(dataclasses.replace(config, model=wider), model=folder)
    write_tower(tmp_path / "image", "image_tower", tower)
    with pytest.raises(InputError, match="which is one image_tower; wanted a dual_enc"):
        read(config, model=str(tmp_path / "image"))
    with pytest.raises(ValueError, match="a whole model, and there are towers"):
        Initial(model=folder, image_tower=folder)
