"""Reads Hugging Face folders of ALIGN and BERT, and writes those of ALIGN.

The folders are local and in the form that transformers 4 and 5 write.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from align_jax import places
from align_jax.config import read_config
from align_jax.errors import InputError
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.wordpiece import WordPiece
from align_jax.input.wordpiece_files import MASK, tokenizer_class, write_tokenizer
from align_jax.models.bert import BertConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import tower_shapes, variable_shapes
from align_jax.weights import huggingface_config, huggingface_tensors
from align_jax.weights.described_fields import read_token_limit
from align_jax.weights.folder import (
    Weights,
    fitting_tokenizer,
    is_dual_encoder,
    new_folder,
    write_tensors,
)
from align_jax.weights.huggingface_vocabulary import (
    SPECIAL_FIELDS,
    read_uncased,
)
from align_jax.weights.tensor_files import check_floats, read_tensors
from align_jax.weights.tensors import check_names, to_ours, to_theirs

# Fields of the image processor that give our preprocessing; sizes and resampling are
# set elsewhere.
IMAGE_PROCESSOR = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "do_normalize": False,
    "include_top": False,
}
# Classes of image processors to which those fields mean the same.
IMAGE_PROCESSORS = (
    "EfficientNetImageProcessor",
    "EfficientNetImageProcessorFast",
    "EfficientNetImageProcessorPil",
)
BILINEAR = 2  # Pillow's code for bilinear resampling
TOLERANCE = 1e-5  # relative, of the numbers above
MAX_TOKENS = 64
TEMPERATURE, LOG_TEMPERATURE = ("params", "temperature"), ("params", "log_temperature")

# Buffers that some versions save; they hold 0, 1, 2, ... and zeros.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def read_align(directory: str) -> Weights[ModelConfig]:
    """Reads a folder of an `AlignModel` with its processor.

    Raises:
      InputError: a file is missing, a tensor is missing, unknown or of the wrong shape,
        or the config describes a network or preprocessing that we do not have.
    """
    folder = places.local_path(directory)
    path = folder / "config.json"
    preprocess = _read_preprocess(folder)
    config = huggingface_config.read_model_config(
        places.read_object(path), preprocess.image_size, _max_tokens(folder), str(path)
    )
    tower = config.text_tower
    tokenizer = read_uncased(folder, tower.vocabulary_size, tower.max_tokens)
    found, source = read_tensors(folder)
    tensors = huggingface_tensors.list_tensors(config)
    wanted = {tensor.name: tensor.shape for tensor in tensors}
    optional = huggingface_tensors.list_unused(config)
    optional |= {
        f"text_model.{name}": found[f"text_model.{name}"].shape
        for name in BUFFERS
        if f"text_model.{name}" in found
    }
    unused = {name: found[name] for name in optional if name in found}
    wanted |= {name: optional[name] for name in unused}
    check_names({name: a.shape for name, a in found.items()}, wanted, source)
    check_floats(found, [tensor.name for tensor in tensors], source)
    variables = to_ours(tensors, found, variable_shapes(config))
    return Weights(
        kind="dual_encoder",
        config=config,
        variables=variables,
        preprocess=preprocess,
        tokenizer=tokenizer,
        unused=unused,
    )


def read_bert(directory: str) -> Weights[BertConfig]:
    """Reads a folder of a Hugging Face BERT as a text tower.

    The head, of any type, and the pooler are ignored.

    Raises:
      InputError: the same reasons as in `read_align`, but unknown tensors and the
        preprocessing are ignored.
    """
    folder = places.local_path(directory)
    path = folder / "config.json"
    config = huggingface_config.read_bert_config(
        places.read_object(path), _max_tokens(folder), str(path)
    )
    tokenizer = read_uncased(folder, config.vocabulary_size, config.max_tokens)
    found, source = read_tensors(folder)
    prefix = "bert." if any(name.startswith("bert.") for name in found) else ""
    # Early checkpoints use TensorFlow's names for the scale and shift of layer norm.
    found = {
        name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): a
        for name, a in found.items()
    }
    tensors = huggingface_tensors.bert_tensors(config, prefix)
    wanted = {tensor.name: tensor.shape for tensor in tensors}
    shapes = {name: a.shape for name, a in found.items() if name in wanted}
    check_names(shapes, wanted, source)
    check_floats(found, wanted, source)
    variables = to_ours(tensors, found, tower_shapes("text_tower", config))
    return Weights("text_tower", config, variables, tokenizer=tokenizer)


def write_align(
    weights: Weights, directory: str, texts: Mapping[str, str] | None = None
) -> None:
    """Writes a new folder that `AlignModel` and `AlignProcessor` load.

    Args:
      weights: weights of a dual encoder.
      directory: local path of the folder.
      texts: contents of further text files, by name.

    Raises:
      InputError: the weights are not those of a dual encoder, the model has a part that
        an `AlignModel` cannot have, or the folder exists and is not empty.
    """
    if not is_dual_encoder(weights) or weights.preprocess is None:
        raise InputError(f"an AlignModel has two towers; this is a {weights.kind}")
    config, preprocess = weights.config, weights.preprocess
    described = huggingface_config.write_model_config(config, preprocess.image_size)
    variables = dict(weights.variables)
    if LOG_TEMPERATURE in variables:
        variables[TEMPERATURE] = np.exp(variables.pop(LOG_TEMPERATURE))
    arrays = to_theirs(huggingface_tensors.list_tensors(config), variables)
    zeros = {
        name: np.zeros(shape, np.float32 if shape else np.int64)
        for name, shape in huggingface_tensors.list_unused(config).items()
    }
    arrays |= zeros | dict(weights.unused)
    image_processor = IMAGE_PROCESSOR | {
        "image_processor_type": "EfficientNetImageProcessor",
        "processor_class": "AlignProcessor",
        "size": {"height": preprocess.resize, "width": preprocess.resize},
        "crop_size": {"height": preprocess.image_size, "width": preprocess.image_size},
        "resample": BILINEAR,
    }
    special = SPECIAL_FIELDS | {"mask_token": MASK}
    own = fitting_tokenizer(weights)
    if not isinstance(own, WordPiece):
        raise InputError(f"an AlignModel has BERT's WordPiece; this model has {own}")
    described_tokenizer = write_tokenizer(own.tokens, own.normalisation)
    tokenizer = special | {
        "tokenizer_class": tokenizer_class(described_tokenizer),
        "processor_class": "AlignProcessor",
        "model_max_length": config.text_tower.max_tokens,
        "do_lower_case": True,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
    }
    files = {
        "config.json": described,
        "preprocessor_config.json": image_processor,
        "tokenizer_config.json": tokenizer,
        "tokenizer.json": described_tokenizer,
        "special_tokens_map.json": special,
    }
    with new_folder(directory) as folder:
        write_tensors(arrays, folder / "model.safetensors")
        places.write_text(folder / "vocab.txt", "".join(f"{t}\n" for t in own.tokens))
        for name, content in files.items():
            places.write_json(folder / name, content)
        for name, text in (texts or {}).items():
            places.write_text(folder / name, text)


def _read_preprocess(folder: pathlib.Path) -> PreprocessConfig:
    """Translates preprocessor_config.json, or processor_config.json's image part.

    Raises:
      InputError: the settings are not those of `IMAGE_PROCESSOR`, or not square.
    """
    path = folder / "preprocessor_config.json"
    if path.exists():
        found = places.read_object(path)
    else:
        path = folder / "processor_config.json"
        found = places.read_object(path, {"image_processor": dict})["image_processor"]
    kind = found.get("image_processor_type")
    if kind is not None and kind not in IMAGE_PROCESSORS:
        raise InputError(
            f"{path}: image_processor_type is {kind!r}; ours is {IMAGE_PROCESSORS[0]!r}"
        )
    if found.get("do_pad"):
        raise InputError(f"{path}: do_pad is {found['do_pad']!r}; ours is False")
    for name, value in (IMAGE_PROCESSOR | {"resample": BILINEAR}).items():
        if not _is_near(found.get(name), value):
            raise InputError(f"{path}: {name} is {found.get(name)!r}; ours is {value}")
    sides: dict[str, Any] = {name: found.get(name) for name in ("size", "crop_size")}
    for name, square in sides.items():
        if not _is_square(square):
            raise InputError(
                f"{path}: {name} is {square!r}, not a square of height and width, as in"
                ' {"height": 289, "width": 289}'
            )
    fields = {
        "resize": sides["size"]["height"],
        "image_size": sides["crop_size"]["height"],
    }
    return read_config(PreprocessConfig, fields, f"{path}: size and crop_size")


def _is_near(found: Any, wanted: float) -> bool:
    """Returns whether a JSON value is a number, or a bool, next to the wanted one."""
    if not isinstance(found, int | float):
        return False
    return wanted * (1 - TOLERANCE) <= found <= wanted * (1 + TOLERANCE)


def _is_square(sides: Any) -> bool:
    """Returns whether a value is {"height": SIDE, "width": SIDE}, SIDE above 0."""
    if not isinstance(sides, dict) or type(sides.get("height")) is not int:
        return False
    return sides["height"] == sides.get("width") and sides["height"] > 0


def _max_tokens(folder: pathlib.Path) -> int:
    """Returns the tokenizer's limit of tokens in a text, but no more than 64.

    64 is the limit of ALIGN's paper (arXiv 2102.05918). The errors are those of
    `read_token_limit`.
    """
    found = read_token_limit(folder)
    return MAX_TOKENS if found is None else min(MAX_TOKENS, found)
