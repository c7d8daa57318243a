"""Checks that a class or an object fulfils a Protocol.

A config chooses a class by its key in a literal dict. The class is checked when it is
chosen, so that a missing method is an error at the start of a run and not at its end.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, get_origin


class Member(NamedTuple):
    """A member of a class or of an object.

    Attributes:
      value: value that the class or object has under the member's name.
      bound: whether a call of `value` needs no argument for `self`.
      on_class: whether the class has the value, not only its instances.
    """

    value: Any
    bound: bool = True
    on_class: bool = True


Find = Callable[[str], Member | None]  # returns the member of a name; None without one


def check_contract(cls: type, contract: type, where: str) -> None:
    """Raises TypeError if a class does not fulfil a Protocol.

    The Protocol's public attributes and methods must exist in the class. The fields of
    a dataclass count as attributes of its instances, but not as methods, nor as an
    attribute that the Protocol annotates with `ClassVar`. Methods must accept the
    Protocol's arguments: by position if they stand before a "/" in the Protocol, by
    name if they stand after a "*", else both ways. The same holds for the constructor
    and `__call__` if the Protocol defines them. The Protocol's empty methods do not
    count if the class inherits them.

    Args:
      cls: class that the dict holds.
      contract: Protocol of the dict's values.
      where: dict and key of the class, for the message, such as "ENGINES['duckdb']".
    """
    if not isinstance(cls, type):
        raise TypeError(f"{where} is {cls!r}; wanted a class")
    find = functools.partial(_of_class, cls, contract)
    _check(find, contract, f"class {cls.__name__} of {where}")


def check_instance(value: object, contract: type, where: str) -> None:
    """Raises TypeError if an object does not fulfil a Protocol, see `check_contract`.

    The attributes of the object count, including those of its `__getattr__`.

    Args:
      value: object to check.
      contract: Protocol without a constructor.
      where: role of the object, for the message, such as "the evaluation's encoder".
    """
    find = functools.partial(_of_instance, value)
    _check(find, contract, f"{type(value).__name__} as {where}")


def _check(find: Find, contract: type, subject: str) -> None:
    problems = [_compare(find, contract, name) for name in _members(contract)]
    if broken := [problem for problem in problems if problem]:
        raise TypeError(
            f"{subject} {'; it '.join(broken)}"
            f" (the contract is {contract.__module__}.{contract.__name__})"
        )


def _members(contract: type) -> list[str]:
    """Lists a Protocol's public members, also `__init__` and `__call__` if defined."""
    names: dict[str, None] = {}  # an ordered set
    for base in reversed(contract.__mro__):
        if base in (object, Generic, Protocol):
            continue
        found = [*vars(base).get("__annotations__", {}), *vars(base)]
        names |= dict.fromkeys(name for name in found if not name.startswith("_"))
        # Python gives a Protocol without a constructor a default one.
        made = getattr(vars(base).get("__init__"), "__qualname__", "")
        if made == f"{base.__qualname__}.__init__":
            names["__init__"] = None
        if "__call__" in vars(base):
            names["__call__"] = None
    return [*names]


def _of_class(cls: type, contract: type, name: str) -> Member | None:
    """Finds a member of a class."""
    if name == "__init__":
        return Member(cls)
    bases = [base for base in cls.__mro__ if base not in contract.__mro__]
    raw = next((vars(base)[name] for base in bases if name in vars(base)), None)
    there = any(name in vars(base) for base in bases)
    if dataclasses.is_dataclass(cls) and name in (
        f.name for f in dataclasses.fields(cls)
    ):
        return Member(None, on_class=there)
    if not there:
        return None
    is_descriptor = hasattr(type(raw), "__get__")
    value = getattr(cls, name)
    bound = not is_descriptor or isinstance(raw, staticmethod | classmethod)
    return Member(value, bound, on_class=callable(value) or not is_descriptor)


def _of_instance(value: object, name: str) -> Member | None:
    """Finds a member of an object."""
    return Member(getattr(value, name)) if hasattr(value, name) else None


def _compare(find: Find, contract: type, name: str) -> str:
    """Returns the fault of one member in words; "" if the member fits."""
    wanted, found = getattr(contract, name, None), find(name)
    if not inspect.isroutine(wanted):
        if found is None:
            return f"lacks the attribute {name}"
        if inspect.isroutine(found.value):
            return f"has {name} as a method, wanted an attribute"
        if _is_class_variable(contract, name) and not found.on_class:
            return f"lacks the attribute {name} of the class"
        return ""
    raw = inspect.getattr_static(contract, name)
    of_instance = not isinstance(raw, staticmethod | classmethod)
    arguments = [*inspect.signature(wanted).parameters.values()][of_instance:]
    call = f"{name}({', '.join(argument.name for argument in arguments)})"
    if found is None or not callable(found.value):
        return f"lacks the method {call}"
    if not of_instance and not found.bound:
        return f"has {name} as a method of its instances, wanted one of the class"
    try:
        signature = inspect.signature(found.value)
    except ValueError:  # some functions in C have no signature
        return ""
    if not found.bound:
        signature = signature.replace(parameters=[*signature.parameters.values()][1:])
    if _accepts(signature, arguments):
        return ""
    return f"has {name}{signature}, wanted {call}"


def _accepts(
    signature: inspect.Signature, arguments: Sequence[inspect.Parameter]
) -> bool:
    """Returns whether a call fits in all the ways in which a Protocol allows it."""

    def names(*kinds: Any) -> list[str]:
        return [a.name for a in arguments if a.kind in kinds]

    first = names(inspect.Parameter.POSITIONAL_ONLY)
    either = names(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    last = {name: name for name in names(inspect.Parameter.KEYWORD_ONLY)}
    try:
        signature.bind(*first, **{name: name for name in either}, **last)
        by_position = signature.bind(*first, *either, **last).arguments
    except TypeError:
        return False
    return all(by_position.get(name, name) == name for name in either)


def _is_class_variable(contract: type, name: str) -> bool:
    """Returns whether a Protocol annotates an attribute with `ClassVar`."""
    bases = [inspect.get_annotations(base) for base in contract.__mro__]
    hint = next((hints[name] for hints in bases if name in hints), None)
    return get_origin(hint) is ClassVar or hint is ClassVar
