"""Files of arrays that others wrote: a damaged or unsafe one is refused in one line."""

import json
import pickle
import struct
import sys
import types

import numpy as np
import pytest

from align_jax.errors import InputError
from align_jax.weights.tensor_files import read_tensors


def safetensors_of(kind: str, numbers: int, size: int) -> bytes:
    described = {"dtype": kind, "shape": [numbers], "data_offsets": [0, size]}
    header = json.dumps({"a": described}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "C64"])
def test_narrow_numbers_without_their_scales_are_refused(tmp_path, kind):
    size = {"C64": 16}.get(kind, 2)
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_of(kind, 2, size))
    with pytest.raises(InputError, match=f"a has the number type {kind}; wanted"):
        read_tensors(tmp_path)
    path.write_bytes(safetensors_of("BF16", 1, 2))
    assert read_tensors(tmp_path)[0]["a"].dtype == np.float32


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "holds a list; wanted an object"),
        ({}, "lacks the field 'weight_map'"),
        ({"weight_map": None}, "weight_map is a NoneType; wanted dict"),
        ({"weight_map": ["a"]}, "weight_map is a list; wanted dict"),
        ({"weight_map": {}}, "names no file"),
        ({"weight_map": {"a": 3}}, "has 3 for a; wanted a file's name"),
        ({"weight_map": {"a": ["b"]}}, r"has \['b'\] for a; wanted a file's name"),
        ({"weight_map": {"a": "../b"}}, "has '../b' for a; wanted a file's name"),
        ({"weight_map": {"a": ""}}, "has '' for a; wanted a file's name"),
        ({"weight_map": {"a": ".."}}, "has '..' for a; wanted a file's name"),
        ({"weight_map": {"a": "none"}}, "names none, which is missing"),
    ],
)
def test_an_index_of_another_shape_is_refused(tmp_path, index, message):
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = tmp_path / f"{name}.index.json"
        path.write_text(json.dumps(index))
        with pytest.raises(InputError, match=f"{path.name}.*{message}"):
            read_tensors(tmp_path)
        path.unlink()


class Numbers:
    """A tensor as far as it is needed here."""

    dtype, layout = "torch.float32", "strided"

    def is_floating_point(self):
        return self.dtype.startswith("torch.float")

    def detach(self):
        return self

    def float(self):
        return self

    def numpy(self):
        return np.zeros(2, np.float32)


class Narrow(Numbers):
    dtype = "torch.float8_e4m3fn"


class Sparse(Numbers):
    layout = "torch.sparse_coo"

    def numpy(self):
        raise TypeError("can't convert Sparse layout tensor to numpy")


ADVICE = "Weights only load failed: set `weights_only` to False, or weights_only=False"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.UnpicklingError(ADVICE), r"no state dict of PyTorch \(UnpicklingError"),
        (RuntimeError(ADVICE), r"no state dict of PyTorch \(RuntimeError"),
        (KeyError("x"), r"no state dict of PyTorch \(KeyError"),
        (OSError("no disk"), "cannot be read: no disk; wanted tensors by name"),
        (EOFError("Ran out of input"), r"no state dict of PyTorch \(EOFError"),
        ([Numbers()], "holds a list; wanted a state dict"),
        (Numbers(), "holds a Numbers; wanted a state dict"),
        ({"epoch": 3}, "holds 'epoch', a int; wanted a state dict"),
        ({"model": {"a": Numbers()}}, "holds 'model', a dict; wanted a state dict"),
        ({3: Numbers()}, "holds 3, a Numbers; wanted a state dict"),
        ({"a": Narrow()}, "a has the number type F8_E4M3FN; wanted one of F64"),
        ({"a": Sparse()}, r"a is no plain tensor \(float32, torch.sparse_coo\)"),
    ],
)
def test_a_pickle_that_is_no_state_dict_is_refused_without_bad_advice(
    tmp_path, monkeypatch, content, message
):
    def load(path, map_location, weights_only):
        assert weights_only
        if isinstance(content, Exception):
            raise content
        return content

    torch = types.SimpleNamespace(load=load, Tensor=Numbers)
    monkeypatch.setitem(sys.modules, "torch", torch)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=f"pytorch_model.bin.*{message}") as caught:
        read_tensors(tmp_path)
    assert "weights_only" not in str(caught.value)
    content = {"a": Numbers()}
    assert [*read_tensors(tmp_path)[0]] == ["a"]
