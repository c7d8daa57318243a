"""Opens weights wherever they are from."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np

from align_jax.devices.mesh import make_mesh
from align_jax.errors import InputError
from align_jax.models.classifier import ClassifierConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import flatten
from align_jax.training.checkpoint import FOLDER, Checkpoints, split_source
from align_jax.training.train_state import abstract_state
from align_jax.training.training_runs import TRAINING, read_run_config
from align_jax.weights.efficientnet_checkpoint import read_keras, read_tensorflow
from align_jax.weights.folder import (
    MODEL_FILE,
    Weights,
    WeightsConfig,
    read_json,
    read_weights,
)
from align_jax.weights.huggingface_folder import read_align, read_bert

HUGGING_FACE: dict[str, Callable[[str], Weights[WeightsConfig]]] = {
    "align": read_align,
    "bert": read_bert,
}


def open_weights(source: str) -> Weights[WeightsConfig]:
    """Reads a model or a tower.

    Args:
      source: a folder of ours (`write_weights`), the workdir of a training run (its
        newest checkpoint) or one of its checkpoints (RUN/checkpoints/STEP), a Hugging
        Face folder of ALIGN or BERT, a Keras EfficientNet's .h5 file, or a TensorFlow
        EfficientNet checkpoint's prefix.

    Raises:
      InputError: it is none of these, or not whole.
    """
    path = pathlib.Path(source)
    if path.is_file() and path.suffix == ".h5":
        return read_keras(source)
    if pathlib.Path(f"{source}.index").is_file():
        return read_tensorflow(source)
    if (path / MODEL_FILE).is_file():
        return read_weights(source)
    if (path / "config.json").is_file():
        described = read_json(path / "config.json")
        if described.get("run") in TRAINING:
            return read_run(source)
        kind = described.get("model_type")
        if kind in HUGGING_FACE:
            return HUGGING_FACE[kind](source)
        raise InputError(
            f"{path / 'config.json'} has model_type {kind!r}; wanted one of"
            f" {', '.join(HUGGING_FACE)}"
        )
    if path.parent.name == FOLDER and path.name.isdigit():
        return read_run(source)
    found = "a folder without either" if path.is_dir() else "no folder"
    raise InputError(
        f"{source} is {found}: wanted one with {MODEL_FILE} or config.json, a Keras .h5"
        " file or the prefix of a TensorFlow checkpoint"
    )


def read_run(source: str) -> Weights[ModelConfig | ClassifierConfig]:
    """Reads a checkpoint of a training run, its average where it has one.

    Raises:
      InputError: there is no such checkpoint, or it does not fit the run's config.
    """
    workdir, step = split_source(source)
    path = pathlib.Path(workdir) / "config.json"
    config = read_run_config(read_json(path), str(path))
    tokenizer = config.make_tokenizer()
    checkpoints = Checkpoints(workdir, config.checkpoint, config.identity(tokenizer))
    state = checkpoints.restore(step, abstract_state(config.make_plan(make_mesh())))
    checkpoints.close()
    return Weights(
        kind=config.kind,
        config=config.model,
        variables=jax.tree.map(np.asarray, flatten(state.variables)),
        preprocess=config.evaluation_preprocess,
        vocabulary=tokenizer.tokens if tokenizer else (),
        step=step,
    )
