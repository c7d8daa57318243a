"""Reads the arrays of checkpoint files: safetensors and the pickles of PyTorch.

The files may come from anyone. No code in them is run, and every file that cannot be
read is an InputError.
"""

import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from align_jax import places
from align_jax.errors import InputError, one_line

Arrays = dict[str, np.ndarray]

# Number types that are read, as safetensors names them. Narrower floating-point types
# have scales in other tensors, of which we know nothing.
FLOATS = ("F64", "F32", "F16", "BF16")
OTHERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")

# Names of a checkpoint's file in a Hugging Face folder, and the ending that the name of
# an index of several files has in addition.
CHECKPOINT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"


def has_tensors(folder: str) -> bool:
    """Returns whether a folder has a Hugging Face checkpoint."""
    names = [f"{name}{end}" for name in CHECKPOINT_FILES for end in ("", INDEX)]
    return any(places.exists(os.path.join(folder, name)) for name in names)


def read_tensors(
    folder: pathlib.Path, names: Sequence[str] = CHECKPOINT_FILES
) -> tuple[Arrays, str]:
    """Reads a Hugging Face checkpoint's arrays by name, from one file or several.

    Args:
      folder: the checkpoint's folder.
      names: possible names of the file; safetensors end in ".safetensors".

    Returns:
      The arrays by name, with all floating-point types converted to float32, and the
      path of their file or index for messages.

    Raises:
      InputError: the checkpoint is missing, incomplete or damaged, or it is a pickle
        and PyTorch is not installed.
    """
    for name in names:
        read = read_safetensors if name.endswith(".safetensors") else read_pickle
        whole, index = folder / name, folder / f"{name}{INDEX}"
        if whole.exists():
            return read(whole), str(whole)
        if index.exists():
            arrays: Arrays = {}
            for part in _list_parts(index):
                arrays |= read(part)
            return arrays, str(index)
    raise InputError(f"{folder} has neither {' nor '.join(names)}")


def read_safetensors(path: pathlib.Path) -> Arrays:
    """Reads a safetensors file; floating-point arrays become float32.

    Raises:
      InputError: the file is missing or damaged, or a tensor has a number type that is
        not in `FLOATS` or `OTHERS`.
    """
    try:
        types, arrays = _load_url(path) if places.is_url(path) else _load_file(path)
    except InputError:
        raise
    except Exception as error:  # parsers of untrusted bytes raise anything
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    return {
        name: a.astype(np.float32) if types[name] in FLOATS else a
        for name, a in arrays.items()
    }


def read_pickle(path: pathlib.Path) -> Arrays:
    """Reads a state dict that PyTorch saved; floating-point arrays become float32.

    Raises:
      InputError: PyTorch is not installed, or the file is damaged, holds anything but
        tensors by name, or a tensor of a number type that is not read.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path} is a PyTorch pickle: install align-jax[convert], in a checkout by"
            " `pip install -e '.[convert]'`, or take the checkpoint's model.safetensors"
        ) from error
    try:
        with warnings.catch_warnings():  # PyTorch's advice on files of other types
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # parsers of untrusted bytes raise anything
        # PyTorch's own text advises to run the code in the file.
        reason = one_line(error)
        if not isinstance(error, OSError) or "weights_only" in reason:
            reason = f"it is no state dict of PyTorch ({type(error).__name__})"
        raise InputError(
            f"{path} cannot be read: {reason}; wanted tensors by name and nothing else,"
            " best as model.safetensors"
        ) from error
    if not isinstance(found, Mapping):
        raise InputError(
            f"{path} holds a {type(found).__name__}; wanted a state dict, tensors by"
            " name"
        )
    arrays = {}
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{path} holds {name!r}, a {type(tensor).__name__}; wanted a state"
                " dict, tensors by name"
            )
        arrays[name] = _as_array(name, tensor, path)
    return arrays


def check_floats(
    arrays: Mapping[str, np.ndarray], names: Iterable[str], source: str
) -> None:
    """Raises InputError if one of the named arrays holds whole numbers.

    Args:
      arrays: arrays by name.
      names: the parameters and statistics; those that `arrays` lacks are ignored.
      source: origin of the arrays, for the message.
    """
    for name in names:
        kind = arrays[name].dtype if name in arrays else np.dtype(np.float32)
        if kind.kind != "f" and kind.name != "bfloat16":
            raise InputError(
                f"{source}: {name} is {kind}; wanted floating-point"
                " numbers, not quantised ones"
            )


def _load_file(path: pathlib.Path) -> tuple[dict[str, str], Arrays]:
    """Returns the number types and the arrays of a safetensors file, by name."""
    with safetensors.safe_open(path, framework="np") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
        for name, kind in types.items():
            _check_type(name, kind, path)
        return types, {name: file.get_tensor(name) for name in types}


def _load_url(path: pathlib.Path) -> tuple[dict[str, str], Arrays]:
    """Returns the same as `_load_file` for a file in a bucket."""
    content = places.read_bytes(path)
    types = {name: part["dtype"] for name, part in safetensors.deserialize(content)}
    for name, kind in types.items():
        _check_type(name, kind, path)
    return types, safetensors.numpy.load(content)


def _as_array(name: str, tensor: Any, path: pathlib.Path) -> np.ndarray:
    """Converts a PyTorch tensor to an array; floating-point numbers to float32."""
    kind = str(tensor.dtype).removeprefix("torch.")
    short = kind.replace("bfloat", "BF").replace("float", "F").upper()
    if tensor.is_floating_point():
        _check_type(name, short, path)
    try:
        tensor = tensor.detach()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except Exception as error:  # a sparse or quantised tensor, or one without values
        raise InputError(
            f"{path}: {name} is no plain tensor ({kind}, {tensor.layout})"
        ) from error


def _check_type(name: str, kind: str, path: pathlib.Path) -> None:
    if kind not in FLOATS + OTHERS:
        raise InputError(
            f"{path}: {name} has the number type {kind}; wanted one of"
            f" {', '.join(FLOATS)}"
        )


def _list_parts(index: pathlib.Path) -> list[pathlib.Path]:
    """Returns the paths of the files that an index of several files names.

    Raises:
      InputError: the index is damaged, or names a file that is missing or lies in
        another folder.
    """
    files = places.read_object(index, {"weight_map": dict})["weight_map"]
    parts = []
    for tensor, name in files.items():
        is_name = isinstance(name, str) and name not in ("", "..")
        if not is_name or pathlib.PurePath(name).name != name:
            raise InputError(
                f"{index} has {name!r} for {tensor}; wanted a file's name in its folder"
            )
        if name not in parts:
            parts.append(name)
    if not parts:
        raise InputError(f"{index} names no file")
    for name in parts:
        if not (index.parent / name).exists():
            raise InputError(f"{index} names {name}, which is missing")
    return [index.parent / name for name in sorted(parts)]
