"""Writes the two encoders of a model as programs that run without this package.

encoders.json         the inputs' shapes and types, and the preprocessing
tokenizer.json        the tokenizer, for Hugging Face's library `tokenizers`; one of
                      SentencePiece is tokenizer.model with tokenizer_config.json

With ONNX, for onnxruntime and others:

image_encoder.onnx    from "images" (B, H, W, 3) uint8 to "embeddings" (B, D) float32
text_encoder.onnx     from "tokens" (B, L) int32, padded with the tower's `pad_token`,
                      to the same

With StableHLO, for `jax.export.deserialize`, which also gives the StableHLO module:

image_encoder.jax     the program (variables, images) -> embeddings
text_encoder.jax      the program (variables, tokens) -> embeddings
weights.safetensors   the variables

B is any size. Embeddings have unit length. The programs compute in float32.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from align_jax import places
from align_jax.config import leave_out, read_config, stored_fields
from align_jax.errors import InputError
from align_jax.models.dual_encoder import DualEncoder, ModelConfig, temperature_of
from align_jax.models.parameters import unflatten
from align_jax.models.towers import execution_fields
from align_jax.weights.folder import (
    WEIGHTS_FILE,
    Weights,
    fitting_tokenizer,
    is_dual_encoder,
    new_folder,
    write_tensors,
)
from align_jax.weights.onnx_graph import BATCH
from align_jax.weights.onnx_translation import OPSET, translate

ENCODERS_FILE = "encoders.json"
OUTPUT = "embeddings"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
LARGEST_FILE = 1_900_000_000  # bytes; an ONNX file holds up to 2 GiB


class Encoder(NamedTuple):
    """One encoder of a model.

    Attributes:
      file: name of its file, without a suffix.
      name: name of its input.
      like: shape, without the batch, and type of its input.
      embed: function from (variables as nested dicts, input) to the embeddings.
    """

    file: str
    name: str
    like: jax.ShapeDtypeStruct
    embed: Callable[[Mapping[str, Any], jax.Array], jax.Array]


def write_onnx(weights: Weights[Any], directory: str) -> None:
    """Writes a new folder with both encoders in ONNX.

    The weights are in the files of the encoders, or, for an encoder of more than 1.9
    GB, in a file beside it.

    Raises:
      InputError: the weights are not those of a dual encoder, a tower has an operation
        that the translation lacks, or the folder exists and is not empty.
    """
    import onnx

    described, variables = _describe(weights), unflatten(weights.variables)
    described |= {"format": "onnx", "opset": OPSET}
    with new_folder(directory) as folder:
        for encoder in _encoders(weights):
            model = translate(
                partial(encoder.embed, variables),
                encoder.like,
                name=encoder.name,
                output=OUTPUT,
                metadata={"align_jax": json.dumps(described)},
            )
            large = sum(len(a.raw_data) for a in model.graph.initializer)
            path = folder / f"{encoder.file}.onnx"
            onnx.save_model(
                model,
                path,
                save_as_external_data=large > LARGEST_FILE,
                location=f"{path.name}.data",
            )
            onnx.checker.check_model(str(path), full_check=True)
        _write_others(weights, described, folder)


def write_stablehlo(weights: Weights[Any], directory: str) -> None:
    """Writes a new folder with both encoders as StableHLO, by `jax.export`.

    Raises:
      InputError: the weights are not those of a dual encoder, or the folder exists and
        is not empty.
    """
    described = _describe(weights) | {"format": "stablehlo", "platforms": PLATFORMS}
    arrays = {".".join(path): array for path, array in weights.variables.items()}
    shapes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in arrays.items()}
    (batch,) = export.symbolic_shape(BATCH)
    with new_folder(directory) as folder:
        for encoder in _encoders(weights):
            like = encoder.like
            embed = jax.jit(partial(_embed_flat, encoder))
            program = export.export(embed, platforms=PLATFORMS)(
                shapes, jax.ShapeDtypeStruct((batch, *like.shape), like.dtype)
            )
            content = bytes(program.serialize())
            places.write_bytes(folder / f"{encoder.file}.jax", content)
        write_tensors(arrays, folder / WEIGHTS_FILE)
        _write_others(weights, described, folder)


def _encoders(weights: Weights[ModelConfig]) -> Iterator[Encoder]:
    fields = dataclasses.asdict(weights.config)
    plain = leave_out(fields, execution_fields(fields)) | {"dtype": "float32"}
    model = read_config(ModelConfig, plain).build()
    assert weights.preprocess is not None
    side = weights.preprocess.image_size
    inputs = {
        "image": ("images", (side, side, 3), np.uint8),
        "text": ("tokens", (plain["text_tower"]["max_tokens"],), np.int32),
    }
    for tower, (name, shape, dtype) in inputs.items():
        like = jax.ShapeDtypeStruct(shape, dtype)
        embed = partial(_embed, model, f"encode_{tower}s")
        yield Encoder(f"{tower}_encoder", name, like, embed)


def _embed(
    model: DualEncoder, method: str, variables: Mapping[str, Any], array: jax.Array
) -> jax.Array:
    found = model.apply({"batch_stats": {}, **variables}, array, method=method)
    assert isinstance(found, jax.Array)
    return found


def _embed_flat(
    encoder: Encoder, variables: Mapping[str, jax.Array], array: jax.Array
) -> jax.Array:
    """Embeds with variables {path joined by ".": array}."""
    paths: Any = {tuple(name.split(".")): value for name, value in variables.items()}
    return encoder.embed(unflatten(paths), array)


def _describe(weights: Weights[Any]) -> dict[str, Any]:
    """Returns what a program that runs the encoders needs to know."""
    if not is_dual_encoder(weights) or weights.preprocess is None:
        raise InputError(f"encoders are those of a dual encoder, not a {weights.kind}")
    temperature = temperature_of(unflatten(weights.variables)["params"])
    inputs = {
        encoder.name: {
            "file": encoder.file,
            "shape": [BATCH, *encoder.like.shape],
            "type": encoder.like.dtype.name,
        }
        for encoder in _encoders(weights)
    }
    return {
        "inputs": inputs,
        "output": {"name": OUTPUT, "shape": [BATCH, weights.config.width]},
        "temperature": float(temperature),
        "preprocess": stored_fields(weights.preprocess),
        "step": weights.step,
    }


def _write_others(
    weights: Weights[ModelConfig], described: Mapping[str, Any], folder: pathlib.Path
) -> None:
    """Writes the description and the tokenizer."""
    places.write_json(folder / ENCODERS_FILE, described)
    for name, content in fitting_tokenizer(weights).exported().items():
        places.write_bytes(folder / name, content)
