"""Reads Hugging Face folders of ALIGN and BERT, and writes those of ALIGN.

The folders are local and in the form that transformers 4 and 5 write.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.normalizers import read_normalizer
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.tokenizer import CLS, PAD, SEP, UNKNOWN, read_vocabulary
from align_jax.models.bert import BertConfig
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import tower_shapes, variable_shapes
from align_jax.texts import NONE
from align_jax.weights import huggingface_config, huggingface_tensors
from align_jax.weights.folder import (
    Weights,
    is_dual_encoder,
    new_folder,
    write_tensors,
)
from align_jax.weights.huggingface_tokenizer import tokenizer_class, write_tokenizer
from align_jax.weights.tensors import check_names, to_ours, to_theirs
from align_jax.weights.vocabulary import write_vocabulary

MASK = "[MASK]"
MAX_TOKENS = 64

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
BILINEAR = 2  # Pillow's code for bilinear resampling
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
    variables = to_ours(tensors, found, variable_shapes(config))
    vocabulary = _read_vocabulary(folder, config.text_tower.vocabulary_size)
    normalisation = _read_normalisation(folder)
    return Weights(
        kind="dual_encoder",
        config=config,
        variables=variables,
        preprocess=preprocess,
        vocabulary=vocabulary,
        unused=unused,
        normalisation=normalisation,
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
    variables = to_ours(tensors, found, tower_shapes("text_tower", config))
    vocabulary = _read_vocabulary(folder, config.vocabulary_size)
    return Weights(
        "text_tower",
        config,
        variables,
        vocabulary=vocabulary,
        normalisation=_read_normalisation(folder),
    )


def write_align(weights: Weights, directory: str) -> None:
    """Writes a new folder that `AlignModel` and `AlignProcessor` load.

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
    special = {
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "cls_token": CLS,
        "sep_token": SEP,
        "mask_token": MASK,
    }
    described_tokenizer = write_tokenizer(weights)
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
        write_vocabulary(weights.vocabulary, folder / "vocab.txt")
        for name, content in files.items():
            places.write_json(folder / name, content)


def read_tensors(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    """Reads a checkpoint's arrays by name, from one file or several.

    Returns:
      The arrays by name, with all floating-point types converted to float32, and the
      path of their file or index for messages.

    Raises:
      InputError: the checkpoint is missing or incomplete, or it is a pickle and PyTorch
        is not installed.
    """
    for name, read in (
        ("model.safetensors", safetensors.numpy.load_file),
        ("pytorch_model.bin", _read_pickle),
    ):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.exists():
            return _read_file(read, whole), str(whole)
        if index.exists():
            described = places.read_object(index, {"weight_map": dict})
            parts = sorted(set(map(str, described["weight_map"].values())))
            missing = [part for part in parts if not (folder / part).exists()]
            if missing:
                raise InputError(f"{index} names {missing[0]}, which is missing")
            arrays: dict[str, np.ndarray] = {}
            for part in parts:
                arrays |= _read_file(read, folder / part)
            return arrays, str(index)
    raise InputError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def _read_file(
    read: Callable[[pathlib.Path], dict[str, np.ndarray]], path: pathlib.Path
) -> dict[str, np.ndarray]:
    try:
        arrays = read(path)
    except (safetensors.SafetensorError, OSError, EOFError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return {
        name: array.astype(np.float32) if array.dtype.kind in "fV" else array
        for name, array in arrays.items()
    }


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch pickle without running other code in it."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path} is a PyTorch pickle: install align-jax[convert], in a checkout by"
            " `pip install -e '.[convert]'`, or take the checkpoint's model.safetensors"
        ) from error
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return {
        name: (t.float() if t.is_floating_point() else t).numpy()
        for name, t in tensors.items()
    }


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
    wanted = IMAGE_PROCESSOR | {"resample": BILINEAR}
    for name, value in wanted.items():
        number = found.get(name)
        if not isinstance(number, int | float) or not np.isclose(number, value):
            raise InputError(f"{path}: {name} is {number}; ours is {value}")
    sides = {name: _square_side(found.get(name)) for name in ("size", "crop_size")}
    for name, side in sides.items():
        if not side:
            raise InputError(
                f"{path}: {name} is {found.get(name)}, not a square of height and width"
            )
    return PreprocessConfig(resize=sides["size"], image_size=sides["crop_size"])


def _square_side(sides: Any) -> int:
    """Returns the side of {"height": SIDE, "width": SIDE}; 0 for anything else."""
    if not isinstance(sides, dict) or sides.get("height") != sides.get("width"):
        return 0
    side = sides.get("height")
    return side if isinstance(side, int) and side > 0 else 0


def _max_tokens(folder: pathlib.Path) -> int:
    """Returns the tokenizer's limit of tokens in a text, but no more than 64.

    64 is the limit of ALIGN's paper (arXiv 2102.05918).
    """
    path = folder / "tokenizer_config.json"
    described: Mapping[str, Any] = places.read_object(path) if path.exists() else {}
    found = described.get("model_max_length", MAX_TOKENS)
    if not isinstance(found, int | float) or found < 1:
        raise InputError(f"{path}: model_max_length is {found!r}; wanted a number")
    return int(min(MAX_TOKENS, found))


def _read_normalisation(folder: pathlib.Path) -> str:
    """Returns the normalisation of texts: none, except in a folder that we wrote."""
    path = folder / "tokenizer.json"
    described = places.read_object(path) if path.exists() else {}
    return read_normalizer(described.get("normalizer") or {}) or NONE


def _read_vocabulary(folder: pathlib.Path, rows: int) -> tuple[str, ...]:
    """Returns the tokens of vocab.txt or tokenizer.json.

    Raises:
      InputError: the folder has neither file, or there are more tokens than `rows`, the
        rows of the word embedding.
    """
    paths = [folder / "vocab.txt", folder / "tokenizer.json"]
    present = [path for path in paths if path.exists()]
    if not present:
        raise InputError(f"{folder} has neither vocab.txt nor tokenizer.json")
    vocabulary = tuple(read_vocabulary(str(present[0])))
    if len(vocabulary) > rows:
        raise InputError(
            f"{present[0]} has {len(vocabulary)} tokens, but the checkpoint's word"
            f" embedding has {rows} rows"
        )
    return vocabulary
