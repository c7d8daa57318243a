"""Reads literal configs as dataclasses, compares them and binds folders to them.

A literal config is a dict of plain values and sub-dicts, as a config file sets them. A
dotted path names a field in it: "input.preprocess.resize".
"""

import copy
import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar, cast

from align_jax import places, ranges
from align_jax.errors import InputError
from align_jax.locks import LOCK_FILE

CONFIG_FILE = "config.json"  # a folder with it belongs to that config
CHECKPOINTS = "checkpoints"  # folder in a workdir

T = TypeVar("T")


class Dataclass(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


# Metadata of a field that was added after the first version; see `stored_fields`.
LATE = {"late": True}
# Metadata key of a function (value, dotted path) that reads a field of several types.
READER = "reader"


def read_config(cls: type[T], fields: Mapping[str, Any], where: str = "config") -> T:
    """Builds dataclass `cls` from a mapping; sub-mappings build its dataclass fields.

    Where the dataclass wants a tuple or a float, a list or an int is converted to it.
    Values in a `tuple[...]` or `dict[...]` are read by their own annotations, and
    numbers must be in their ranges, see `align_jax.ranges`.

    Args:
      cls: a dataclass whose fields are scalars, tuples, mappings or dataclasses.
      fields: values by field name; fields with a default may be absent.
      where: dotted path of the mapping, for messages.

    Raises:
      InputError: an unknown or missing field, a wrong type, a number out of range, or a
        value for which the dataclass raises ValueError; the message has the dotted
        path.
    """
    known = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in fields:
        if name not in known:
            raise InputError(f"{where} has no field {name!r}; {_suggest(name, known)}")
    values = {}
    for name, field in known.items():
        if name in fields:
            read = field.metadata.get(READER) or partial(read_value, hints[name])
            values[name] = read(fields[name], f"{where}.{name}")
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where} lacks the field {name!r}")
    try:
        return cls(**values)
    except InputError:
        raise  # its message has the field's path already
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def read_part(cls: type[T], fields: Mapping[str, Any], path: str, where: str) -> T:
    """Builds a dataclass from one sub-dict of a literal config; reads no other field.

    Args:
      cls: a dataclass, as for `read_config`.
      fields: the literal config.
      path: dotted path of the sub-dict in `fields`.
      where: dotted path of `fields`, for messages.

    Raises:
      InputError: the sub-dict is missing, or it does not fit the dataclass.
    """
    found: Any = fields
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            raise InputError(f"{where} lacks the field {path!r}")
        found = found[name]
    return read_value(cls, found, f"{where}.{path}")


def choose(choices: Mapping[str, T], name: str, where: str) -> T:
    """Returns the entry of a dict that a config chooses by its name.

    Args:
      choices: all entries by name.
      name: name of the chosen entry.
      where: dotted path of the config's field, for the message.

    Raises:
      InputError: an unknown name; the message lists all names.
    """
    if not isinstance(name, str) or name not in choices:
        raise InputError(f"{where} is {name!r}; {_suggest(name, choices)}")
    return choices[name]


def check_choices(
    config: Dataclass, choices: Mapping[str, Iterable[str]], prefix: str = ""
) -> None:
    """Checks the fields of a dataclass that hold one of several names.

    Args:
      config: dataclass to check.
      choices: allowed names by field.
      prefix: text before a field's name in the message, as in "model.".

    Raises:
      ValueError: a field holds another name; the message lists the allowed ones.
    """
    for field, known in choices.items():
        name = getattr(config, field)
        if name not in known:
            raise ValueError(f"{prefix}{field} is {name!r}; {_suggest(name, known)}")


def stored_fields(config: Dataclass) -> dict[str, Any]:
    """Returns the fields that identify a model, as nested dicts.

    A field with the metadata `LATE` is left out if its value is the default. So the
    fields, and a hash of them, equal those that an earlier version stored.
    """
    fields = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not field.metadata.get("late") or value != field.default:
            nested = dataclasses.is_dataclass(value)
            fields[field.name] = stored_fields(value) if nested else value
    return fields


def differing_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], where: str = "config"
) -> list[str]:
    """Lists 'path: old -> new' for every field in which two configs differ.

    A missing field is shown as 'absent'. `where` is the first part of the paths.
    """
    found = []
    for name in sorted({*old, *new}):
        path = f"{where}.{name}"
        before, after = old.get(name, "absent"), new.get(name, "absent")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differing_fields(before, after, path)
        elif before != after:
            found.append(f"{path}: {before!r} -> {after!r}")
    return found


def leave_out(fields: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """Returns a config without the fields at the given dotted paths, if it has them."""
    kept = dict(fields)
    for path in paths:
        name, _, rest = path.partition(".")
        if rest and isinstance(kept.get(name), Mapping):
            kept[name] = leave_out(kept[name], [rest])
        elif not rest:
            kept.pop(name, None)
    return kept


def change(
    fields: Mapping[str, Any], changes: Iterable[tuple[str, Any]]
) -> dict[str, Any]:
    """Returns a copy of a config with new values at the given dotted paths.

    Args:
      fields: the literal config.
      changes: pairs (dotted path, new value). Missing fields and sub-dicts are added.

    Raises:
      InputError: a path through a value that is not a sub-dict.
    """
    changed = copy.deepcopy(dict(fields))
    for path, value in changes:
        *parents, name = path.split(".")
        node = changed
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(
                    f"{path!r} is no field: {parent!r} is {node!r}, which has none"
                )
        node[name] = copy.deepcopy(value)
    return changed


def check_folder(
    folder: places.Place,
    config: Mapping[str, Any],
    free: Iterable[str] = (),
    fill: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Checks that a folder is unused or belongs to this config; changes nothing.

    A folder belongs to the config in its file `CONFIG_FILE`. It is unused if it is
    absent or empty, apart from files that are being written.

    Args:
      folder: path or URL of the folder.
      config: literal config of the run or build.
      free: dotted paths of fields that may differ, because they do not change results.
      fill: function that adds the defaults to a literal config. It is applied to both
        configs, because a folder of an earlier version may lack fields.

    Raises:
      InputError: the folder belongs to another config (the message names the differing
        fields), holds files that no run or build wrote, or is a file.
    """
    path = os.path.join(folder, CONFIG_FILE)
    if places.exists(path):
        stored, own = places.read_object(path), as_json(fill(config))
        try:
            stored = as_json(fill(stored))
            differing = differing_fields(leave_out(stored, free), leave_out(own, free))
        except InputError as error:  # a field or value of another version
            differing = [str(error)]
        if differing:
            raise InputError(
                f"{folder} belongs to another config ({'; '.join(differing)});"
                " give another folder or go back to that config"
            )
    # Another process may be writing the config now, or was killed while it did.
    elif not places.is_free(folder, (CONFIG_FILE, LOCK_FILE, places.TEMPORARY)):
        if not places.is_folder(folder):
            raise InputError(f"{folder} is a file; wanted a folder")
        raise InputError(
            f"{folder} is not empty and holds no {CONFIG_FILE}, so no run or build of"
            " ours wrote it; give another folder"
        )


def claim_folder(
    folder: places.Place,
    config: Mapping[str, Any],
    free: Iterable[str] = (),
    fill: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Checks a folder with `check_folder`; writes the config if the folder has none.

    The config is written with its defaults.
    """
    check_folder(folder, config, free, fill)
    if not is_claimed(folder):
        write_config(folder, fill(config))


def write_config(folder: places.Place, config: Mapping[str, Any]) -> None:
    """Writes a config to a folder that passed `check_folder`; makes the folder."""
    places.make_folder(folder)
    places.write_json(os.path.join(folder, CONFIG_FILE), config)


def is_claimed(folder: places.Place) -> bool:
    """Returns whether a folder belongs to a config, see `check_folder`."""
    return places.exists(os.path.join(folder, CONFIG_FILE))


def as_json(value: Any) -> Any:
    """Returns a value as JSON reads it back: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value))


def _suggest(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(str(name), [*known], n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}known: {', '.join(known)}"


def read_value(hint: Any, value: Any, where: str) -> Any:
    """Converts a value to its annotated type `hint`; raises InputError if it cannot."""
    allowed = ranges.ANY
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None and type(None) in typing.get_args(hint):
            return None
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is typing.Annotated:
        hint, *notes = typing.get_args(hint)
        allowed = next((n for n in notes if isinstance(n, ranges.Range)), ranges.ANY)
    if hint is Any:
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"{where} is {value!r}; wanted a sub-dict of fields")
        return read_config(hint, value, where)
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is tuple and isinstance(value, list):
        value = _as_tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= ranges.LARGEST else math.inf
    is_misread_bool = isinstance(value, bool) and kind is not bool
    accepted: Any = Mapping if kind is dict else kind
    if is_misread_bool or not isinstance(value, accepted):
        raise InputError(
            f"{where} is {value!r} ({type(value).__name__}); wanted {kind.__name__}"
        )
    if kind in (int, float) and (wanted := ranges.find_fault(value, allowed)):
        raise InputError(f"{where} is {value!r}; wanted {wanted}")
    if kind is dict and parts:
        return _read_dict(parts, value, where)
    if kind is tuple and parts:
        return _read_tuple(parts, value, where)
    return value


def _read_dict(parts: tuple, value: Mapping, where: str) -> dict:
    """Reads a dict's values; `parts` are the types in the brackets of `dict[...]`."""
    name_type, value_type = parts
    return {
        read_value(name_type, name, f"a name in {where}"): read_value(
            value_type, part, f"{where}.{name}"
        )
        for name, part in value.items()
    }


def _read_tuple(parts: tuple, value: tuple, where: str) -> tuple:
    """Reads a tuple's values; `parts` are the types in the brackets of `tuple[...]`."""
    if parts[1:] == (...,):
        parts = parts[:1] * len(value)
    if len(value) != len(parts):
        raise InputError(
            f"{where} is {value!r}; wanted {len(parts)} values, not {len(value)}"
        )
    return tuple(
        read_value(part, item, f"{where}[{index}]")
        for index, (part, item) in enumerate(zip(parts, value, strict=True))
    )


def _as_tuple(value: Any) -> Any:
    """Converts nested lists, which JSON has instead of tuples, to nested tuples."""
    if isinstance(value, list):
        return tuple(_as_tuple(part) for part in value)
    return value
