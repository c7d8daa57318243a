"""The folder in which align_jax stores the weights of a model or tower.

model.json            type and config of the weights, number of training steps, and
                      preprocessing except for a tower
weights.safetensors   float32 arrays; their names are paths joined by "."
vocabulary.txt        tokenizer of the text tower, if there is one; in its place,
                      tokenizer.json or tokenizer.model with tokenizer_config.json
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
from align_jax.input.stored_tokenizer import VOCABULARY_FILE
from align_jax.input.tokenizer import Tokenizer, find_stored, open_tokenizer
from align_jax.input.wordpiece import WordPiece
from align_jax.input.wordpiece_files import find_normalisation, read_tokens
from align_jax.models.classifier import ClassifierConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import Path, tower_shapes, variable_shapes
from align_jax.models.tokens import check_tokenizer
from align_jax.models.towers import TowerConfig, read_image_tower, read_text_tower
from align_jax.texts import NFKC_CASEFOLD, NONE
from align_jax.weights.tensor_files import check_floats, read_safetensors
from align_jax.weights.tensors import check_names

MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
NORMALISATIONS = {NONE: NONE, NFKC_CASEFOLD: NFKC_CASEFOLD}
UNUSED = "unused."  # prefix of the names of tensors kept for another codebase

WeightsConfig = ModelConfig | ClassifierConfig | TowerConfig
OfT = TypeVar("OfT", bound=WeightsConfig, covariant=True)


@dataclasses.dataclass(frozen=True)
class Weights(Generic[OfT]):
    """The weights of a dual encoder, of one of its towers, or of a classifier.

    Attributes:
      kind: type of the weights, a key of `WEIGHTS_KINDS`.
      config: config of the model or tower.
      variables: float32 arrays by path, such as ("params", "image_tower", ...).
      preprocess: sizes of the pictures; None for a tower.
      tokenizer: tokenizer of the text tower, with the length of the tower's longest
        sequences; None if there is no text tower. A tuple of tokens, by id, is made
        into a WordPiece.
      unused: tensors of another codebase that the model does not use, by their names
        there; a conversion back needs them.
      step: number of optimizer steps of the training, or None if unknown.
    """

    kind: str
    config: OfT
    variables: Mapping[Path, np.ndarray]
    preprocess: PreprocessConfig | None = None
    tokenizer: Tokenizer | None = None
    unused: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    step: int | None = None

    def __post_init__(self) -> None:
        """Makes the WordPiece; InputError if the tokens are no vocabulary."""
        if isinstance(self.tokenizer, tuple):
            config: Any = self.config
            text = config.text_tower if self.kind == "dual_encoder" else config
            made = (
                WordPiece(self.tokenizer, text.max_tokens) if self.tokenizer else None
            )
            object.__setattr__(self, "tokenizer", made)


@dataclasses.dataclass(frozen=True)
class WeightsKind:
    """How weights of one type are read.

    Attributes:
      read: function from (fields of `MODEL_FILE`, their dotted path for messages) to
        the config.
      shapes: function from a config to the shapes of its variables by path.
      is_model: whether the weights are those of a complete model, not of a tower.
      reads_texts: whether they have a text tower, and so a vocabulary.
    """

    read: Callable[[Any, str], WeightsConfig]
    shapes: Callable[[Any], dict[Path, tuple[int, ...]]]
    is_model: bool
    reads_texts: bool


WEIGHTS_KINDS = {
    "dual_encoder": WeightsKind(
        partial(read_config, ModelConfig),
        variable_shapes,
        is_model=True,
        reads_texts=True,
    ),
    "classifier": WeightsKind(
        partial(read_config, ClassifierConfig),
        variable_shapes,
        is_model=True,
        reads_texts=False,
    ),
    "image_tower": WeightsKind(
        read_image_tower,
        partial(tower_shapes, "image_tower"),
        is_model=False,
        reads_texts=False,
    ),
    "text_tower": WeightsKind(
        read_text_tower,
        partial(tower_shapes, "text_tower"),
        is_model=False,
        reads_texts=True,
    ),
}


def is_model(
    weights: Weights[Any],
) -> TypeGuard[Weights[ModelConfig | ClassifierConfig]]:
    """Returns whether the weights are those of a dual encoder or a classifier."""
    return WEIGHTS_KINDS[weights.kind].is_model


def is_dual_encoder(weights: Weights[Any]) -> TypeGuard[Weights[ModelConfig]]:
    """Returns whether the weights are those of a complete dual encoder."""
    return is_model(weights) and WEIGHTS_KINDS[weights.kind].reads_texts


def fitting_tokenizer(weights: Weights[ModelConfig]) -> Tokenizer:
    """Returns the tokenizer of a dual encoder; InputError if it does not fit."""
    if weights.tokenizer is None:
        raise InputError("the weights of this dual encoder have no tokenizer")
    tower = weights.config.text_tower
    check_tokenizer(weights.tokenizer, tower, "the tokenizer", "text_tower")
    return weights.tokenizer.shortened(tower.max_tokens)


def write_weights(weights: Weights, directory: str) -> None:
    """Writes a new folder; after an error nothing of it remains.

    Args:
      weights: weights of any type.
      directory: local path of the folder.

    Raises:
      InputError: the folder exists and is not empty, or `directory` is a URL.
    """
    described = {
        "align_jax": 1,  # version of this layout
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
        files = weights.tokenizer.files() if weights.tokenizer else {}
        for name, content in files.items():
            places.write_bytes(folder / name, content)
        places.write_json(folder / MODEL_FILE, described)


def read_weights(directory: str) -> Weights[WeightsConfig]:
    """Reads a folder that `write_weights` wrote.

    Raises:
      InputError: a file is missing or truncated, a field of the config is wrong, a
        tensor is missing, unknown or of the wrong shape.
    """
    folder = places.as_path(directory)
    described = places.read_object(folder / MODEL_FILE, {"kind": str, "config": dict})
    where = str(folder / MODEL_FILE)
    kind = choose(WEIGHTS_KINDS, described["kind"], f"{where}: kind")
    config = kind.read(described["config"], f"{where}: config")
    if not isinstance(described.get("step"), int | None):
        raise InputError(f"{where}: step is no whole number")
    preprocess = described.get("preprocess")
    if preprocess is not None:
        if not isinstance(preprocess, dict):
            raise InputError(f"{where}: preprocess is {preprocess!r}; wanted an object")
        preprocess = read_config(PreprocessConfig, preprocess, f"{where}: preprocess")

    arrays = read_safetensors(folder / WEIGHTS_FILE)
    unused = {
        name.removeprefix(UNUSED): arrays.pop(name)
        for name in [*arrays]
        if name.startswith(UNUSED)
    }
    check_names(
        {name: array.shape for name, array in arrays.items()},
        {".".join(path): shape for path, shape in kind.shapes(config).items()},
        str(folder / WEIGHTS_FILE),
    )
    check_floats(arrays, arrays, str(folder / WEIGHTS_FILE))
    tokenizer = None
    if kind.reads_texts:
        tower: Any = getattr(config, "text_tower", config)
        normalisation = described.get("normalisation")
        tokenizer = _read_tokenizer(folder, tower.max_tokens, normalisation)
    return Weights(
        kind=described["kind"],
        config=config,
        variables={tuple(name.split(".")): a for name, a in arrays.items()},
        preprocess=preprocess,
        tokenizer=tokenizer,
        unused=unused,
        step=described.get("step"),
    )


def _read_tokenizer(
    folder: pathlib.Path, max_tokens: int, normalisation: str | None
) -> Tokenizer:
    """Opens the tokenizer of a folder.

    Folders of earlier versions have the normalisation in `MODEL_FILE`.
    """
    path = find_stored(str(folder)) or str(folder / VOCABULARY_FILE)
    if normalisation is None:
        return open_tokenizer(path, max_tokens)
    choose(NORMALISATIONS, normalisation, f"{folder / MODEL_FILE}: normalisation")
    tokens, _ = read_tokens(path)
    return WordPiece(tokens, max_tokens, path, normalisation)


def digest(weights: Weights) -> str:
    """Returns a hash, 32 hex digits, of everything that a model's output depends on.

    These are the config, the preprocessing, the tokenizer and the variables. Indexes
    keep this hash, so it stays what earlier versions computed for WordPiece.
    """
    found = hashlib.blake2b(digest_size=16)
    described = [weights.config, weights.preprocess]
    fields = [part and stored_fields(part) for part in described]
    tokens: tuple[str, ...] = ()
    tokenizer, suffix = weights.tokenizer, ""
    if isinstance(tokenizer, WordPiece):
        tokens = tokenizer.tokens
        if tokenizer.normalisation != find_normalisation(tokens):
            suffix = tokenizer.normalisation
    elif tokenizer is not None:
        suffix = tokenizer.digest
    found.update(json.dumps([fields, tokens], sort_keys=True).encode())
    found.update(suffix.encode())
    for path, array in sorted(weights.variables.items()):
        found.update(".".join(path).encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def write_tensors(arrays: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes a safetensors file that Hugging Face's libraries read."""
    contiguous = {name: np.array(a, order="C") for name, a in arrays.items()}
    path.touch()
    mode = path.stat().st_mode  # as the umask says; safetensors makes it private
    safetensors.numpy.save_file(contiguous, path, metadata={"format": "pt"})
    path.chmod(mode)


@contextlib.contextmanager
def new_folder(directory: str) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, which becomes `directory` if no error occurs.

    Raises:
      InputError: `directory` exists and is not empty, or is a URL.
    """
    target = places.local_path(directory)
    if not places.is_free(target):
        raise InputError(f"{directory} is there already; give a new folder")
    with places.replacing(target) as filling:
        places.make_folder(filling)
        yield pathlib.Path(filling)
