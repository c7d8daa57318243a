"""Maps another codebase's tensors to our parameter tree and back, bit for bit."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from align_jax.errors import InputError
from align_jax.models.parameters import Path


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the other codebase.

    Attributes:
      name: name in the other codebase.
      path: path in our variables.
      shape: shape in the other codebase.
      axes: permutation of the axes into our order, before the reshape to our shape.
      part: tuple (index, count) of a tensor that is one of `count` equal parts of the
        named tensor along its first axis; the shape is that of the part.
      negated: whether ours has the opposite sign.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    part: tuple[int, int] = (0, 1)
    negated: bool = False


def list_shapes(tensors: list[Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the other codebase's tensors by name."""
    shapes = {}
    for tensor in tensors:
        shapes[tensor.name] = tensor.shape
        if tensor.part[1] > 1:
            rows = tensor.shape[0] * tensor.part[1]
            shapes[tensor.name] = (rows, *tensor.shape[1:])
    return shapes


def check_names(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    source: str,
) -> None:
    """Checks that tensors have the wanted names and shapes.

    Args:
      found: shapes by name.
      wanted: shapes by name.
      source: origin of the tensors, for the message.

    Raises:
      InputError: tensors are missing, not known or of another shape. The message names
        the source and up to five of them, with both shapes.
    """
    problems = [
        f"{name} {wanted[name]} is missing" for name in wanted if name not in found
    ]
    problems += [
        f"{name} {found[name]} is not known" for name in found if name not in wanted
    ]
    problems += [
        f"{name} is {tuple(found[name])}, wanted {tuple(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if problems:
        rest = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(f"{source} does not fit: {'; '.join(problems[:5])}{rest}")


def to_ours(
    tensors: list[Tensor],
    found: Mapping[str, np.ndarray],
    shapes: Mapping[Path, tuple[int, ...]],
) -> dict[Path, np.ndarray]:
    """Converts arrays of the other codebase to ours.

    Args:
      tensors: tensors to convert.
      found: arrays of the other codebase by name; those not in `tensors` are ignored.
      shapes: our shapes by path.

    Returns:
      Our arrays by path.
    """
    ours = {}
    for tensor in tensors:
        array, (index, count) = found[tensor.name], tensor.part
        if count > 1:
            rows = tensor.shape[0]
            array = array[index * rows : (index + 1) * rows]
        array = array.transpose(tensor.axes).reshape(shapes[tensor.path])
        ours[tensor.path] = np.asarray(-array) if tensor.negated else array
    return ours


def to_theirs(
    tensors: list[Tensor], ours: Mapping[Path, np.ndarray]
) -> dict[str, np.ndarray]:
    """Converts our arrays by path to those of the other codebase by name."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    for tensor in tensors:
        permuted = tuple(tensor.shape[axis] for axis in tensor.axes)
        back = np.argsort(tensor.axes)
        array = np.asarray(ours[tensor.path]).reshape(permuted).transpose(back)
        array = np.asarray(-array) if tensor.negated else array
        parts.setdefault(tensor.name, {})[tensor.part[0]] = array.copy(order="C")
    return {
        name: np.concatenate([found[i] for i in sorted(found)])
        if len(found) > 1
        else found[0]
        for name, found in parts.items()
    }
