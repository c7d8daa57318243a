import dataclasses

import numpy as np
import pytest

from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.initialize import place_towers, read_towers
from align_jax.models.efficientnet import EfficientNetConfig
from align_jax.parameters import flatten
from align_jax.pretrain_config import InitialTowers, PretrainConfig
from align_jax.train_step import create_state
from align_jax.weights import Weights, tower_shapes, write_weights
from tests import tiny


@pytest.fixture
def config(tmp_path):
    return read_config(PretrainConfig, tiny.make_run(tmp_path))


def write_tower(folder, kind, config, vocabulary=()):
    draw = np.random.default_rng(0)
    arrays = {
        path: draw.normal(size=shape).astype(np.float32)
        for path, shape in tower_shapes(kind, config).items()
    }
    weights = Weights(kind, config, arrays, vocabulary=tuple(vocabulary))
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
    sources = InitialTowers(str(tmp_path / "image"), str(tmp_path / "text"))
    arrays = read_towers(sources, config.model, config.make_tokenizer())
    state = create_state(config.make_plan(mesh_of(8)))
    placed = place_towers(state, arrays)
    before, after = (flatten(s.own_variables) for s in (state, placed))
    assert before.keys() == after.keys()
    for path, array in after.items():
        expected = (image | text).get(path, before[path])
        np.testing.assert_array_equal(array, expected)
        assert array.sharding == before[path].sharding
    assert ("params", "image_tower", "top", "kernel") in image


def test_a_tower_of_another_size_kind_or_vocabulary_is_refused(config, tmp_path):
    tokenizer = config.make_tokenizer()
    write_tower(tmp_path / "image", "image_tower", EfficientNetConfig(0.5, 0.3))
    folder = str(tmp_path / "image")
    with pytest.raises(
        InputError, match=r"depthwise_norm.mean is \(16,\), wanted \(8,\)"
    ):
        read_towers(InitialTowers(image_tower=folder), config.model, tokenizer)
    with pytest.raises(InputError, match="text_tower is .*, which is one image_tower"):
        read_towers(InitialTowers(text_tower=folder), config.model, tokenizer)
    words = [*tiny.WORDS, "more"]
    write_tower(tmp_path / "text", "text_tower", config.model.text_tower, words)
    with pytest.raises(InputError, match="has 11 tokens and is not the vocabulary of"):
        read_towers(
            InitialTowers(text_tower=str(tmp_path / "text")), config.model, tokenizer
        )
