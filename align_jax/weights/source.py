"""Opens weights of any supported format."""

import contextlib
import os
from collections.abc import Callable

import jax
import numpy as np

from align_jax import places
from align_jax.config import CONFIG_FILE
from align_jax.devices.mesh import make_mesh
from align_jax.errors import InputError
from align_jax.models.classifier import ClassifierConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import flatten
from align_jax.training.checkpoint import FOLDER, Checkpoints, read_whole
from align_jax.training.train_state import abstract_state
from align_jax.training.training_runs import TRAINING, read_run_config
from align_jax.weights.efficientnet_checkpoint import read_keras, read_tensorflow
from align_jax.weights.folder import MODEL_FILE, Weights, WeightsConfig, read_weights
from align_jax.weights.huggingface_folder import read_align, read_bert

HUGGING_FACE: dict[str, Callable[[str], Weights[WeightsConfig]]] = {
    "align": read_align,
    "bert": read_bert,
}


def open_weights(source: str) -> Weights[WeightsConfig]:
    """Reads a model or a tower.

    Args:
      source: a folder that `write_weights` wrote, the workdir of a training run (for
        its newest whole checkpoint), one of its checkpoints (RUN/checkpoints/STEP), a
        Hugging Face folder of ALIGN or BERT, a Keras EfficientNet's .h5 file, or the
        prefix of a TensorFlow EfficientNet checkpoint.

    Raises:
      InputError: the source is none of these, or it is incomplete.
    """
    place = places.resolve(source)
    if place.endswith(".h5") and places.exists(place):
        return read_keras(place)
    if places.exists(f"{place}.index"):
        return read_tensorflow(place)
    if places.exists(os.path.join(place, MODEL_FILE)):
        return read_weights(place)
    described_by = os.path.join(place, CONFIG_FILE)
    if places.exists(described_by):
        described = places.read_object(described_by)
        if described.get("run") in TRAINING:
            return read_run(place)
        kind = described.get("model_type")
        if kind in HUGGING_FACE:
            return HUGGING_FACE[kind](place)
        raise InputError(
            f"{described_by} has model_type {kind!r}; wanted one of"
            f" {', '.join(HUGGING_FACE)}"
        )
    folder, name = os.path.split(place)
    if os.path.basename(folder) == FOLDER and name.isdigit():
        return read_run(place)
    found = "a folder without either" if places.is_folder(place) else "no folder"
    raise InputError(
        f"{source} is {found}: wanted one with {MODEL_FILE} or config.json, a Keras .h5"
        " file or the prefix of a TensorFlow checkpoint"
    )


def read_run(source: str) -> Weights[ModelConfig | ClassifierConfig]:
    """Reads a checkpoint of a training run: its moving average if it has one.

    Args:
      source: path or URL of the checkpoint, RUN/checkpoints/STEP, or of the run's
        workdir for the newest whole one.

    Raises:
      InputError: the checkpoint does not exist, is damaged, or does not fit the run's
        config.
    """
    return read_whole(source, _read_checkpoint)


def _read_checkpoint(
    workdir: str, step: int
) -> Weights[ModelConfig | ClassifierConfig]:
    path = os.path.join(workdir, CONFIG_FILE)
    config = read_run_config(places.read_object(path), path)
    tokenizer = config.make_tokenizer()
    checkpoints = Checkpoints(workdir, config.checkpoint, config.identity(tokenizer))
    with contextlib.closing(checkpoints):
        state = checkpoints.restore(step, abstract_state(config.make_plan(make_mesh())))
    return Weights(
        kind=config.kind,
        config=config.model,
        variables=jax.tree.map(np.asarray, flatten(state.variables)),
        preprocess=config.evaluation_preprocess,
        vocabulary=tokenizer.tokens if tokenizer else (),
        step=step,
    )
