"""A model's weights in a folder of their own, shared by runs, conversions and users.

model.json            what it is, its config and, for a dual encoder, preprocessing
weights.safetensors   float32 arrays; their names are paths joined by "."
vocabulary.txt        of the text tower, where there is one
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Generic, TypeGuard, TypeVar

import numpy as np
import safetensors.numpy

from align_jax import places
from align_jax.config import choose, read_config, stored_fields
from align_jax.errors import InputError
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.tokenizer import read_vocabulary
from align_jax.models.classifier import ClassifierConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import (
    Path,
    check_names,
    tower_shapes,
    variable_shapes,
)
from align_jax.models.towers import TowerConfig, read_image_tower, read_text_tower

MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
VOCABULARY_FILE = "vocabulary.txt"
UNUSED = "unused."  # prefix of the names of tensors kept for another codebase

WeightsConfig = ModelConfig | ClassifierConfig | TowerConfig
OfT = TypeVar("OfT", bound=WeightsConfig, covariant=True)


@dataclasses.dataclass(frozen=True)
class Weights(Generic[OfT]):
    """A dual encoder, one of its towers, or a classifier.

    Attributes:
      kind: a key of `KINDS`.
      config: of that kind's type.
      variables: float32 arrays by path, as the dual encoder names them.
      preprocess: of its pictures; None for a tower.
      vocabulary: tokens by id; empty where there is no text tower.
      unused: tensors of the codebase it came from that take no part in the model, by
        their names there; so that it can go back as it came.
      step: optimizer steps it was trained for, where that is known.
    """

    kind: str
    config: OfT
    variables: Mapping[Path, np.ndarray]
    preprocess: PreprocessConfig | None = None
    vocabulary: tuple[str, ...] = ()
    unused: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class WeightsKind:
    """What a folder holds.

    Attributes:
      read: makes the config of the fields in `MODEL_FILE` and their place.
      shapes: gives the shapes of a config's variables by path.
      reads_texts: whether it has a vocabulary.
    """

    read: Callable[[Any, str], WeightsConfig]
    shapes: Callable[[Any], dict[Path, tuple[int, ...]]]
    reads_texts: bool


KINDS = {
    "dual_encoder": WeightsKind(
        partial(read_config, ModelConfig), variable_shapes, True
    ),
    "classifier": WeightsKind(
        partial(read_config, ClassifierConfig), variable_shapes, False
    ),
    "image_tower": WeightsKind(
        read_image_tower, partial(tower_shapes, "image_tower"), False
    ),
    "text_tower": WeightsKind(
        read_text_tower, partial(tower_shapes, "text_tower"), True
    ),
}


def is_dual_encoder(weights: Weights) -> TypeGuard[Weights[ModelConfig]]:
    """Whether weights are a whole dual encoder's."""
    return isinstance(weights.config, ModelConfig)


def write_weights(weights: Weights, directory: str) -> None:
    """Writes a new folder, whole or not at all; raises InputError where one is."""
    described = {
        "align_jax": 1,  # of this layout
        "kind": weights.kind,
        "config": stored_fields(weights.config),
        "step": weights.step,
    }
    if weights.preprocess is not None:
        described["preprocess"] = stored_fields(weights.preprocess)
    arrays = {".".join(path): array for path, array in weights.variables.items()}
    arrays |= {UNUSED + name: array for name, array in weights.unused.items()}
    with new_folder(directory) as folder:
        write_tensors(arrays, folder / WEIGHTS_FILE)
        if weights.vocabulary:
            write_vocabulary(weights.vocabulary, folder / VOCABULARY_FILE)
        places.write_json(folder / MODEL_FILE, described)


def read_weights(directory: str) -> Weights[WeightsConfig]:
    """Reads a folder that `write_weights` wrote.

    Raises:
      InputError: a file is missing or cut short, or a tensor is missing, not known or
        misshapen.
    """
    folder = places.local_path(directory)
    described = places.read_object(folder / MODEL_FILE)
    where = str(folder / MODEL_FILE)
    kind = choose(KINDS, described.get("kind", ""), f"{where}: kind")
    config = kind.read(described.get("config", {}), f"{where}: config")
    preprocess = described.get("preprocess")
    if preprocess is not None:
        preprocess = read_config(PreprocessConfig, preprocess, f"{where}: preprocess")

    try:
        arrays = safetensors.numpy.load_file(folder / WEIGHTS_FILE)
    except (FileNotFoundError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS_FILE} cannot be read: {error}") from error
    unused = {
        name.removeprefix(UNUSED): array
        for name, array in arrays.items()
        if name.startswith(UNUSED)
    }
    own = {
        tuple(name.split(".")): array
        for name, array in arrays.items()
        if not name.startswith(UNUSED)
    }
    check_names(
        {".".join(path): array.shape for path, array in own.items()},
        {".".join(path): shape for path, shape in kind.shapes(config).items()},
        str(folder / WEIGHTS_FILE),
    )
    vocabulary: tuple[str, ...] = ()
    if kind.reads_texts:
        vocabulary = tuple(read_vocabulary(str(folder / VOCABULARY_FILE)))
    return Weights(
        kind=described["kind"],
        config=config,
        variables=own,
        preprocess=preprocess,
        vocabulary=vocabulary,
        unused=unused,
        step=described.get("step"),
    )


def digest(weights: Weights) -> str:
    """Hash of all that a model's output depends on, 32 hex digits."""
    found = hashlib.blake2b(digest_size=16)
    described = [weights.config, weights.preprocess]
    fields = [part and stored_fields(part) for part in described]
    found.update(json.dumps([fields, weights.vocabulary], sort_keys=True).encode())
    for path, array in sorted(weights.variables.items()):
        found.update(".".join(path).encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def write_tensors(arrays: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes a safetensors file as Hugging Face's libraries read them."""
    contiguous = {name: np.array(a, order="C") for name, a in arrays.items()}
    safetensors.numpy.save_file(contiguous, path, metadata={"format": "pt"})


def write_vocabulary(vocabulary: tuple[str, ...], path: pathlib.Path) -> None:
    """Writes a vocabulary file, one token a line."""
    places.write_text(path, "".join(f"{token}\n" for token in vocabulary))


@contextlib.contextmanager
def new_folder(directory: str) -> Iterator[pathlib.Path]:
    """Gives a folder to fill, which becomes `directory` when all went well.

    Raises:
      InputError: `directory` is there and not empty.
    """
    target = places.local_path(directory)
    if not places.is_free(target):
        raise InputError(f"{directory} is there already; give a new folder")
    with places.replacing(target) as filling:
        places.make_folder(filling)
        yield pathlib.Path(filling)
