"""Reads some arrays of a checkpoint, without its other arrays, a mesh or a plan."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from align_jax import places
from align_jax.config import CHECKPOINTS, as_json
from align_jax.errors import InputError
from align_jax.models.parameters import Path, flatten, unflatten
from align_jax.training import integrity
from align_jax.training.checkpoint_record import STATE, read_record, reading
from align_jax.training.integrity import DamagedCheckpointError
from align_jax.training.schedule_free import average, stored_points

AVERAGE = "average"  # field of `TrainState` with the moving averages


def read_variables(
    workdir: str,
    step: int,
    identity: Mapping[str, Any],
    shapes: Mapping[Path, tuple[int, ...]],
) -> dict[Path, np.ndarray]:
    """Reads the variables to evaluate with: averages if the run computed any.

    These are the moving averages, or the parameters' averages of a schedule-free
    optimizer, see `evaluation_point`.

    Args:
      workdir: path or URL of the run's folder.
      step: step of a checkpoint that exists, see `list_steps`.
      identity: fields that the checkpoint must match, see `model_identity`.
      shapes: shapes of the model's variables by path, see `variable_shapes`.

    Returns:
      Arrays by the paths of `shapes`.

    Raises:
      InputError: the checkpoint belongs to another model or vocabulary, or an array is
        missing, damaged or of another shape.
    """
    path = _checkpoint(workdir, step)
    record = read_record(path, as_json(identity))
    paths = set(array_paths(workdir, step))
    averaged = any(first == AVERAGE for first, *_ in paths)
    above: Path = (AVERAGE,) if averaged else ()
    wanted = {(*above, *variable): shape for variable, shape in shapes.items()}
    points = stored_points(paths, shapes)
    wanted |= {z: shapes[variable] for variable, (z, _) in points.items()}
    wanted |= {b1: () for _, b1 in points.values()}
    arrays = restore_part(workdir, step, wanted, record)
    found = {variable: arrays[*above, *variable] for variable in shapes}
    for variable, (z, b1) in points.items():
        found[variable] = average(found[variable], arrays[z], arrays[b1])
    return found


def restore_part(
    workdir: str,
    step: int,
    shapes: Mapping[Path, tuple[int, ...]],
    record: Mapping[str, Any] | None = None,
) -> dict[Path, np.ndarray]:
    """Reads some arrays of a checkpoint's state; the others are not read.

    Args:
      workdir: path or URL of the run's folder.
      step: step of a checkpoint that exists.
      shapes: shapes of the wanted arrays by their paths in `TrainState`, such as
        ("params", "image_tower", "stem", "kernel").
      record: record of the checkpoint, see `read_record`, to check the arrays with.

    Returns:
      Arrays in this process's memory by the paths of `shapes`.

    Raises:
      InputError: an array is missing, damaged or of another shape.
    """
    path = _checkpoint(workdir, step)
    arrays = unflatten(dict.fromkeys(shapes, ocp.RestoreArgs(restore_type=np.ndarray)))
    form = jax.tree.map(lambda _: 0, arrays)  # an array that is absent stays 0
    items = ocp.args.PyTreeRestore(form, restore_args=arrays, partial_restore=True)
    with reading(path):
        state = epath.Path(path) / STATE
        found = ocp.PyTreeCheckpointHandler().restore(state, args=items)
    restored: dict[Path, Any] = dict(flatten(found))
    saved = record["arrays"] if record else {}
    for name, shape in shapes.items():
        stored = getattr(restored[name], "shape", "absent")
        if stored != shape:
            described = saved.get(".".join(name))
            damaged = described is not None and tuple(described[0]) == shape
            kind = DamagedCheckpointError if damaged else InputError
            array = f"{path}/{STATE} has the array {'.'.join(name)}"
            raise kind(f"{array}: {stored}; wanted {shape}")
    integrity.check(found, record, path)
    return restored


def array_paths(workdir: str, step: int) -> list[Path]:
    """Returns the paths of all arrays of a checkpoint's state; reads no array.

    A number in a path is the index in a tuple.

    Raises:
      InputError: the description of the arrays is missing or damaged.
    """
    path = _checkpoint(workdir, step)
    with reading(path):
        state = epath.Path(path) / STATE
        described = ocp.PyTreeCheckpointHandler().metadata(state)
    return [*ocp.tree.to_flat_dict(described.tree)]


def _checkpoint(workdir: str, step: int) -> str:
    return os.path.join(places.resolve(workdir), CHECKPOINTS, str(step))
