"""Reads and writes folders of CLIP and SigLIP, as transformers and OpenCLIP have them.

The folders are local. Those of transformers have a config.json, those of OpenCLIP an
open_clip_config.json; both have a tokenizer of Hugging Face.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from align_jax import places
from align_jax.errors import InputError
from align_jax.input.preprocess import PreprocessConfig
from align_jax.input.tokenizer import (
    Tokenizer,
    find_published,
    is_wordpiece,
    open_tokenizer,
)
from align_jax.models.dual_encoder import ModelConfig
from align_jax.models.parameters import Path, tower_shapes, variable_shapes
from align_jax.models.tokens import check_tokenizer
from align_jax.models.towers import TowerConfig
from align_jax.models.transformer import TransformerConfig
from align_jax.models.vit import VitConfig
from align_jax.weights import clip_config, clip_tensors, open_clip_config
from align_jax.weights import open_clip_tensors as open_tensors
from align_jax.weights.clip_forms import CLIP, FORMS, SIGLIP
from align_jax.weights.described_fields import read_token_limit
from align_jax.weights.folder import (
    Weights,
    fitting_tokenizer,
    is_dual_encoder,
    new_folder,
    write_tensors,
)
from align_jax.weights.huggingface_vocabulary import check_uncased
from align_jax.weights.open_clip_forms import OpenClipVisionFields
from align_jax.weights.open_clip_pictures import (
    read_open_clip_pictures,
    write_open_clip_pictures,
)
from align_jax.weights.open_clip_tokenizer import open_cleaned
from align_jax.weights.picture_settings import (
    PictureSettings,
    read_pictures,
    write_pictures,
)
from align_jax.weights.published_tokenizer import tokenizer_files
from align_jax.weights.tensor_files import Arrays, check_floats, read_tensors
from align_jax.weights.tensors import (
    Tensor,
    check_names,
    list_shapes,
    to_ours,
    to_theirs,
)

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
TEMPERATURE, LOG_TEMPERATURE = ("params", "temperature"), ("params", "log_temperature")
# Buffers that some versions save; they hold 0, 1, 2, ...
BUFFERS = tuple(f"{t}_model.embeddings.position_ids" for t in ("text", "vision"))
# model_type of a folder with one tower -> (key of `FORMS`, our name of the tower)
TOWERS = {
    f"{kind}_{part}_model": (kind, tower)
    for kind in (CLIP, SIGLIP)
    for part, tower in (("vision", "image_tower"), ("text", "text_tower"))
}


def read_clip(directory: str) -> Weights[ModelConfig]:
    """Reads a folder of a `CLIPModel`, `SiglipModel` or `Siglip2Model`.

    Raises:
      InputError: a file is missing, a tensor is missing, unknown or of the wrong shape,
        or a file describes a network, preprocessing or tokenizer that we do not have.
    """
    folder = places.local_path(directory)
    path = folder / "config.json"
    described = places.read_object(path)
    kind = described["model_type"]
    pictures = read_pictures(folder, kind)
    config = clip_config.read_model_config(
        described, read_token_limit(folder), str(path)
    )
    found, source = read_tensors(folder)
    tokenizer = _open_tokenizer(folder, config.text_tower.max_tokens)
    return _make_weights(
        folder,
        config,
        pictures,
        tokenizer,
        tensors=clip_tensors.list_tensors(config, kind),
        checkpoint=(found, source),
        buffers=BUFFERS,
    )


def read_open_clip(directory: str) -> Weights[ModelConfig]:
    """Reads a folder of an OpenCLIP model; errors are those of `read_clip`."""
    folder = places.local_path(directory)
    path = folder / OPEN_CLIP_CONFIG
    described = places.read_object(path, {"model_cfg": dict})
    where = f"{path}: model_cfg"
    config = open_clip_config.read_open_clip(
        described["model_cfg"], read_token_limit(folder), where
    )
    size = described["model_cfg"]["vision_cfg"].get("image_size")
    size = OpenClipVisionFields.image_size if size is None else size
    pictures = read_open_clip_pictures(described.get("preprocess_cfg"), size, str(path))
    found, source = read_tensors(folder, OPEN_CLIP_FILES)
    prefix = "text." if "text.positional_embedding" in found else ""
    tokenizer = open_cleaned(
        _check_wordpiece(folder),
        described["model_cfg"]["text_cfg"].get("tokenizer_kwargs"),
        config.text_tower.max_tokens,
        f"{where}.text_cfg.tokenizer_kwargs",
    )
    return _make_weights(
        folder,
        config,
        pictures,
        tokenizer,
        tensors=open_tensors.list_tensors(config, prefix),
        checkpoint=(found, source),
        buffers=(f"{prefix}attn_mask",),
    )


def _make_weights(
    folder: pathlib.Path,
    config: ModelConfig,
    pictures: PictureSettings,
    tokenizer: Tokenizer,
    *,
    tensors: list[Tensor],
    checkpoint: tuple[Arrays, str],
    buffers: tuple[str, ...],
) -> Weights[ModelConfig]:
    """Joins the parts of a folder, after checks that they belong together.

    Args:
      folder: the folder, for messages.
      config: config of the model; pixels and padding are not set.
      pictures: preprocessing.
      tokenizer: the folder's tokenizer.
      tensors: tensors of the model.
      checkpoint: the arrays by name, and their path for messages.
      buffers: arrays' names, of those that are kept but not used.
    """
    config, side = pictures.set_pixels(config), pictures.preprocess.image_size
    image, text = config.image_tower, cast(TransformerConfig, config.text_tower)
    if isinstance(image, VitConfig) and side // image.patch != image.position_grid:
        raise InputError(
            f"{folder}: pictures of {side} pixels have {side // image.patch} patches a"
            f" side, but the network has positions for {image.position_grid}"
        )
    config = dataclasses.replace(config, text_tower=_fit(text, tokenizer, folder))
    found, source = checkpoint
    unused = {name: found[name] for name in buffers if name in found}
    wanted = list_shapes(tensors) | {name: a.shape for name, a in unused.items()}
    check_names({name: a.shape for name, a in found.items()}, wanted, source)
    check_floats(found, [tensor.name for tensor in tensors], source)
    return Weights(
        kind="dual_encoder",
        config=config,
        variables=to_ours(tensors, found, variable_shapes(config)),
        preprocess=pictures.preprocess,
        tokenizer=tokenizer,
        unused=unused,
    )


def read_clip_tower(directory: str) -> Weights[TowerConfig]:
    """Reads a folder of one tower, such as a `CLIPVisionModel`, to start a training.

    Tensors that are not the tower's, such as a projection, are ignored.

    Raises:
      InputError: the same reasons as in `read_clip`.
    """
    folder = places.local_path(directory)
    path = folder / "config.json"
    described = places.read_object(path)
    kind, name = TOWERS[described["model_type"]]
    found, source = read_tensors(folder)
    own = f"{'vision' if name == 'image_tower' else 'text'}_model."
    prefix = own if any(tensor.startswith(own) for tensor in found) else ""
    tokenizer: Tokenizer | None = None
    config: TowerConfig
    if name == "image_tower":
        config = image = clip_config.read_image_tower(kind, described, str(path))
        tensors = clip_tensors.image_tensors(image, kind, prefix)
    else:
        limit = read_token_limit(folder)
        text = clip_config.read_text_tower(kind, described, limit, str(path))
        tokenizer = _open_tokenizer(folder, text.max_tokens)
        config = text = _fit(text, tokenizer, folder)
        tensors = clip_tensors.text_tensors(text, prefix)
    wanted = list_shapes(tensors)
    shapes = {key: array.shape for key, array in found.items() if key in wanted}
    check_names(shapes, wanted, source)
    check_floats(found, wanted, source)
    variables = to_ours(tensors, found, tower_shapes(name, config))
    return Weights(name, config, variables, tokenizer=tokenizer)


def _open_tokenizer(folder: pathlib.Path, max_tokens: int) -> Tokenizer:
    """Opens the tokenizer of a folder, after the checks of `_check_wordpiece`."""
    return open_tokenizer(find_published(str(_check_wordpiece(folder))), max_tokens)


def _check_wordpiece(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder.

    Raises:
      InputError: the folder has a WordPiece vocabulary with settings that are not those
        of an uncased BERT.
    """
    if is_wordpiece(find_published(str(folder))):
        check_uncased(folder)
    return folder


def _fit(
    text: TransformerConfig, tokenizer: Tokenizer, folder: pathlib.Path
) -> TransformerConfig:
    """Returns a text tower with the padding of its folder's tokenizer.

    Raises:
      InputError: the tokenizer has more tokens than the network, or ends texts
        otherwise.
    """
    if tokenizer.size <= text.vocabulary_size:
        text = dataclasses.replace(text, pad_token=tokenizer.pad_token)
    check_tokenizer(tokenizer, text, f"the tokenizer in {folder}", "the network")
    return text


def write_clip(
    weights: Weights,
    directory: str,
    texts: Mapping[str, str] | None = None,
    kind: str | None = None,
) -> None:
    """Writes a new folder that transformers loads as a model and its processor.

    Args:
      weights: weights of a dual encoder.
      directory: local path of the folder.
      texts: contents of further text files, by name.
      kind: a key of `FORMS`; None for the one of the model's towers.

    Raises:
      InputError: the weights are not those of a dual encoder, the model has a part that
        a CLIP or SigLIP cannot have, or the folder exists and is not empty.
    """
    config, preprocess = _check_kind(weights)
    found = clip_config.find_form(config)
    if kind is not None and (kind == CLIP) != (found == CLIP):
        raise InputError(
            f"a {FORMS[kind].architecture} has other towers than this"
            f" model, a {FORMS[found].architecture}"
        )
    kind = kind or found
    tensors = clip_tensors.list_tensors(config, kind)
    side = preprocess.image_size
    files = {
        "config.json": clip_config.write_model_config(config, side, kind),
        "preprocessor_config.json": write_pictures(config, preprocess, kind),
    }
    buffers = {n: a for n, a in weights.unused.items() if n in BUFFERS}
    _write(weights, directory, "model.safetensors", (tensors, buffers), files, texts)


def write_open_clip(
    weights: Weights, directory: str, texts: Mapping[str, str] | None = None
) -> None:
    """Writes a new folder that OpenCLIP loads; the arguments are as for `write_clip`.

    Raises:
      InputError: the same reasons as in `write_clip`, or a SigLIP, see
        `open_clip_config.write_open_clip`.
    """
    config, preprocess = _check_kind(weights)
    described = {
        "model_cfg": open_clip_config.write_open_clip(config, preprocess.image_size),
        "preprocess_cfg": write_open_clip_pictures(config, preprocess),
    }
    tensors, files = open_tensors.list_tensors(config), {OPEN_CLIP_CONFIG: described}
    _write(weights, directory, OPEN_CLIP_FILES[0], (tensors, {}), files, texts)


def _check_kind(weights: Weights) -> tuple[ModelConfig, PreprocessConfig]:
    """Returns the config and the preprocessing of a dual encoder."""
    if not is_dual_encoder(weights) or weights.preprocess is None:
        raise InputError(f"a CLIP or SigLIP has two towers; this is a {weights.kind}")
    return weights.config, weights.preprocess


def _write(
    weights: Weights[ModelConfig],
    directory: str,
    file: str,
    contents: tuple[list[Tensor], Mapping[str, np.ndarray]],
    files: Mapping[str, Any],
    texts: Mapping[str, str] | None,
) -> None:
    """Writes a folder.

    Args:
      weights: weights of a dual encoder.
      directory: path of the folder.
      file: name of the file of tensors.
      contents: tensors of the model, and further arrays by name.
      files: contents of JSON files by name.
      texts: contents of text files by name.
    """
    tensors, buffers = contents
    variables: dict[Path, np.ndarray] = dict(weights.variables)
    if TEMPERATURE in variables:
        variables[LOG_TEMPERATURE] = np.log(variables.pop(TEMPERATURE))
    tokenizer = fitting_tokenizer(weights)
    with new_folder(directory) as folder:
        write_tensors(to_theirs(tensors, variables) | dict(buffers), folder / file)
        for name, content in files.items():
            places.write_json(folder / name, content)
        for name, data in tokenizer_files(tokenizer).items():
            places.write_bytes(folder / name, data)
        for name, text in (texts or {}).items():
            places.write_text(folder / name, text)
