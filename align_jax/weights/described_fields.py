"""Strict reading of the config files in which others describe a network."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from align_jax import places
from align_jax.config import Dataclass, read_config
from align_jax.errors import InputError
from align_jax.input.stored_tokenizer import SETTINGS_FILE
from align_jax.ranges import INT32, Range

LEAST_TOKENS = 3  # the beginning of a text, one token, the end
Fields = TypeVar("Fields", bound=Dataclass)

# A config beyond this is damaged; the largest published networks are far below.
Layers = Annotated[int, Range(least=1, most=1000)]
# Other names of an activation, with the name that is read in their place.
SAME_ACTIVATIONS = {"silu": "swish", "gelu_python": "gelu"}


def read_fields(
    defaults: Fields,
    described: Mapping[str, Any],
    where: str,
    *,
    fixed: Iterable[str] = (),
) -> Fields:
    """Reads the fields of one tower's config; null means the default.

    Args:
      defaults: the values of fields that are absent.
      described: JSON object; its fields that `defaults` lacks are ignored.
      where: path of the object, for messages.
      fixed: the names of fields that must have their default.

    Raises:
      InputError: a field has another type, or a value that our towers do not support.
    """
    values = {f.name: getattr(defaults, f.name) for f in dataclasses.fields(defaults)}
    given = {k: v for k, v in described.items() if k in values and v is not None}
    if isinstance(activation := given.get("hidden_act"), str):
        given["hidden_act"] = SAME_ACTIVATIONS.get(activation, activation)
    found = read_config(type(defaults), values | given, where)
    check_fixed(found, {name: values[name] for name in fixed}, where)
    return found


def check_fixed(found: Any, wanted: Mapping[str, Any], where: str) -> None:
    """Raises InputError if a field of a dataclass is not the wanted value."""
    for name in sorted(wanted):
        value = getattr(found, name)
        if value != wanted[name]:
            raise InputError(f"{where}.{name} is {value}; ours is {wanted[name]}")


def check_others(
    described: Mapping[str, Any], wanted: Mapping[str, Any], where: str
) -> None:
    """Raises InputError if a field that may be absent or null has another value."""
    for name, value in wanted.items():
        found = described.get(name)
        if found is not None and found != value:
            raise InputError(f"{where}.{name} is {found!r}; ours is {value!r}")


def read_token_limit(folder: pathlib.Path) -> int | None:
    """Returns the limit of tokens in a text that tokenizer_config.json has, or None.

    Tokenizers without a limit have a number there that is larger than any text.

    Raises:
      InputError: the limit is no number, or too small for a text.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return None
    found = places.read_object(path).get("model_max_length")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InputError(f"{path}: model_max_length is {found!r}; wanted a number")
    if not found >= LEAST_TOKENS:
        raise InputError(
            f"{path}: model_max_length is {found!r}; wanted {LEAST_TOKENS} or more"
        )
    return int(min(INT32, found))
