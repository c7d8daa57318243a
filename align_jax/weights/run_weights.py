"""Reads the weights of a training run.

This module is apart from `align_jax.weights.source` because it imports Orbax, which no
other weights need.
"""

import os

from align_jax import places
from align_jax.config import CONFIG_FILE, choose
from align_jax.input.tokenizer import open_tokenizer
from align_jax.models.classifier import ClassifierConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import variable_shapes
from align_jax.training.checkpoint import read_whole
from align_jax.training.checkpoint_part import read_variables
from align_jax.training.run_config import model_identity
from align_jax.training.training_runs import TRAINING
from align_jax.weights.folder import WEIGHTS_KINDS, Weights
from align_jax.weights.vocabulary import find_vocabulary


def read_run(source: str) -> Weights[ModelConfig | ClassifierConfig]:
    """Reads a checkpoint of a training run: its moving average if it has one.

    Only the model's variables are read, on any number of devices. No dataset is needed.
    The vocabulary is that of the workdir, or, if the workdir has none, of the config.

    Args:
      source: path or URL of the checkpoint, RUN/checkpoints/STEP, or of the run's
        workdir for the newest whole one.

    Raises:
      InputError: the checkpoint does not exist, is damaged, or does not fit the run's
        config or vocabulary.
    """
    return read_whole(source, _read_checkpoint)


def _read_checkpoint(
    workdir: str, step: int
) -> Weights[ModelConfig | ClassifierConfig]:
    path = os.path.join(workdir, CONFIG_FILE)
    fields = places.read_object(path)
    training = choose(TRAINING, fields.get("run", "absent"), f"{path}.run")
    described = training.read_model(fields, path)
    tokenizer = None
    if WEIGHTS_KINDS[described.kind].reads_texts:
        assert isinstance(described.model, ModelConfig)
        vocabulary = find_vocabulary(workdir, described.vocabulary)
        max_tokens = described.model.text_tower.max_tokens
        tokenizer = open_tokenizer(vocabulary, max_tokens)
    identity = model_identity(described.model, tokenizer)
    shapes = variable_shapes(described.model)
    return Weights(
        kind=described.kind,
        config=described.model,
        variables=read_variables(workdir, step, identity, shapes),
        preprocess=described.preprocess,
        tokenizer=tokenizer,
        step=step,
    )
