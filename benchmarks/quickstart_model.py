"""A model of the quickstart's size with random weights, for benchmarks of its use."""

import pathlib

import numpy as np

from align_jax.config import read_config
from align_jax.input.wordpiece import WordPiece
from align_jax.models.parameters import variable_shapes
from align_jax.training.pretrain_config import PretrainConfig
from align_jax.weights.folder import Weights, write_weights
from configs import quickstart

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["red", "blue", "apple", "house", "dog", "on", "a", "the"]


def write_model(folder: pathlib.Path) -> None:
    """Writes the model as a folder that `align_jax.load` reads."""
    config = read_config(PretrainConfig, quickstart.get_config().to_dict())
    random, arrays = np.random.default_rng(0), {}
    for path, shape in variable_shapes(config.model).items():
        constant = 0.0 if path[-1] in ("bias", "mean") else 1.0
        arrays[path] = np.full(shape, constant, np.float32)
        if path[-1] in ("kernel", "embedding"):
            spread = np.sqrt(2 / np.prod(shape[:-1]))
            arrays[path] = random.normal(0, spread, shape).astype(np.float32)
    tower = config.model.text_tower
    tokens = [*SPECIAL, *WORDS]
    tokens += [f"[unused{i}]" for i in range(tower.vocabulary_size - len(tokens))]
    tokenizer = WordPiece(tokens, tower.max_tokens)
    preprocess = config.input.preprocess
    write_weights(
        Weights("dual_encoder", config.model, arrays, preprocess, tokenizer),
        str(folder),
    )
