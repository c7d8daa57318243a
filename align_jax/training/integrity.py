"""Checksums of a state's arrays, and checks that they are finite.

A checksum is Fletcher's: the sum of an array's numbers, as unsigned integers, and the
sum of each number times its position, both modulo 2**64. One or two flipped bits always
change it. Sums of an array's parts add up, so the checksum does not depend on how the
array is split over devices and processes, and any arrays can be checked alone.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from align_jax.devices import mesh
from align_jax.devices.exchange import gather
from align_jax.errors import InputError

SEAL = "sha256"  # field of a record with the hash of all other fields


class DamagedCheckpointError(InputError):
    """A checkpoint is incomplete, was changed after the save, or is not finite."""


def all_finite(tree: Any) -> jax.Array:
    """Returns a bool () array: whether all floating-point arrays of a tree are finite.

    It is meant for compiled programs.
    """
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    joined = join_small(floats)
    return jnp.all(jnp.asarray([jnp.all(jnp.isfinite(x)) for x in joined]))


def join_small(tree: Any) -> list[jax.Array]:
    """Returns arrays that together hold all numbers of a tree.

    Arrays of fewer than `mesh.SMALL` elements, which every device holds, become one
    vector for each number type. So a reduction over the tree has fewer kernels, which
    take longer to compile, and to start, than to run.
    """
    small: dict[jnp.dtype, list[jax.Array]] = {}
    arrays = []
    for x in jax.tree.leaves(tree):
        if x.size < mesh.SMALL:
            small.setdefault(x.dtype, []).append(x.reshape(-1))
        else:
            arrays.append(x)
    return [*arrays, *map(jnp.concatenate, small.values())]


def squared_moments(optimizer: Any) -> list[jax.Array]:
    """Returns the arrays of an optimizer's state, without Adam's first moments.

    A second moment overflows or becomes NaN in the same step as the gradient or earlier
    than the first moment, so the first moments need no check.
    """

    def is_adam(state: Any) -> bool:
        return isinstance(state, optax.ScaleByAdamState)

    states = jax.tree.leaves(optimizer, is_leaf=is_adam)
    return jax.tree.leaves([s.nu if is_adam(s) else s for s in states])


def measure(tree: Any) -> tuple[dict[str, list], list[str]]:
    """Computes the checksum of every array of a tree.

    All processes must call it at the same time if an array is split over several.

    Args:
      tree: tree of JAX arrays or of numpy arrays, which every process holds whole.

    Returns:
      ({dotted path: [shape, type, checksum in hexadecimal]}, paths of the arrays that
      hold NaN or infinity).
    """
    leaves = named(tree)
    with ThreadPoolExecutor() as pool:
        sums = np.stack([np.zeros(3, np.uint64), *pool.map(_sums, leaves.values())])
    if any(not _is_local(x) for x in leaves.values()):
        sums = gather(sums).sum(0)
    found = {
        name: [*_form(x), f"{first:016x}{second:016x}"]
        for (name, x), (first, second, _) in zip(
            leaves.items(), sums[1:].tolist(), strict=True
        )
    }
    return found, [n for n, bad in zip(found, sums[1:, 2], strict=True) if bad]


def differing_forms(record: Mapping[str, Any], tree: Any) -> list[str]:
    """Returns how the arrays of a record differ from a tree in names and shapes."""
    saved = {name: form[:2] for name, form in record["arrays"].items()}
    wanted = {name: _form(x) for name, x in named(tree).items()}
    return [
        f"{name}: {_show(saved.get(name))} -> {_show(wanted.get(name))}"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]


def check(tree: Any, record: Mapping[str, Any] | None, path: str) -> None:
    """Checks arrays that were read from a checkpoint.

    Args:
      tree: the arrays, or some of them, at their places in the state.
      record: record of the checkpoint; None for a checkpoint of an earlier version.
      path: path of the checkpoint, for the message.

    Raises:
      DamagedCheckpointError: an array is not the saved one, or is not finite.
    """
    found, bad = measure(tree)
    if record is not None:
        saved = record["arrays"]
        differing = [name for name, form in found.items() if saved.get(name) != form]
        if differing:
            raise DamagedCheckpointError(
                f"{path} is damaged: bytes were changed in {list_names(differing)}"
            )
    if bad:
        raise DamagedCheckpointError(
            f"{path} is damaged: NaN or infinity is in {list_names(bad)}"
        )


def seal(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields with their hash, so that `is_sealed` can check them."""
    return {**fields, SEAL: digest(fields)}


def is_sealed(fields: Any) -> bool:
    """Returns whether the fields are those that `seal` returned."""
    if not isinstance(fields, dict):
        return False
    others = {name: value for name, value in fields.items() if name != SEAL}
    return fields.get(SEAL) == digest(others)


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def list_names(names: list[str]) -> str:
    """Formats the names of arrays, at most three of them."""
    others = len(names) - 3
    return ", ".join(names[:3]) + (f" and {others} more arrays" if others > 0 else "")


def named(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a tree by dotted path, as "params.stem.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(map(_key, path)): x for path, x in leaves}


def _key(key: Any) -> str:
    """Returns the name of a field, the key in a dict, or the index in a tuple."""
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _show(form: list | None) -> str:
    return f"{form[1]} {form[0]}" if form else "absent"


def _form(x: jax.ShapeDtypeStruct) -> list:
    return [list(x.shape), str(x.dtype)]


def _is_local(x: Any) -> bool:
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def _sums(x: Any) -> np.ndarray:
    """Returns (3,) uint64: two sums of this process's part; bad shards.

    A part that several devices or processes hold is counted once.
    """
    if not isinstance(x, jax.Array):
        return _block_sums(x, (0,) * x.ndim, x.shape)
    sums = np.zeros(3, np.uint64)
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            start = [cut.start or 0 for cut in shard.index]
            sums += _block_sums(np.asarray(shard.data), start, x.shape)
    return sums


def _block_sums(
    block: np.ndarray, start: Sequence[int], shape: tuple[int, ...]
) -> np.ndarray:
    """Returns (3,) uint64: both sums of a block, and 1 if it holds NaN or infinity.

    Args:
      block: part of an array.
      start: index of the block's first number in the array.
      shape: shape of the array, whose numbers are counted in order of rows.
    """
    bad = block.dtype.kind not in "iub" and not np.isfinite(block).all()
    if not shape:
        block, start, shape = block[None], (0,), (1,)
    numbers = np.ascontiguousarray(block).view(f"u{block.itemsize}")
    strides = np.cumprod([1, *shape[:0:-1]], dtype=np.uint64)[::-1]
    *rows, columns = (
        (np.arange(n, dtype=np.uint64) + np.uint64(first)) * stride
        for n, first, stride in zip(block.shape, start, strides, strict=True)
    )
    places = functools.reduce(np.add.outer, rows, np.uint64(0))
    by_row = numbers.sum(-1, dtype=np.uint64)
    by_column = numbers.reshape(-1, block.shape[-1]).sum(0, dtype=np.uint64)
    weighted = [(places * by_row).ravel(), columns * by_column]
    return np.array([by_row.sum(), np.concatenate(weighted).sum(), bad], np.uint64)
