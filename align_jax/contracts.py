"""Checks that a class fulfils the Protocol of the literal dict that holds it.

A config's `kind` is a key of such a dict. The class is checked when it is chosen, so
that a missing method is an error of the first second and not of the last stage.
"""

import inspect
from typing import Generic, Protocol


def check_contract(cls: type, contract: type, where: str) -> None:
    """Raises TypeError for a class that lacks something its Protocol asks for.

    The Protocol's public attributes and methods must exist; a dataclass has its fields.
    A method, and the constructor and `__call__` if the Protocol has one, must take the
    Protocol's arguments: by name, or by position if they stand before a "/" there.

    Args:
      cls: class that the dict holds.
      contract: Protocol of the dict's values.
      where: place of the class, for the message, such as "ENGINES['duckdb']".
    """
    problems = [_compare(cls, contract, name) for name in _members(contract)]
    broken = [problem for problem in problems if problem]
    if broken:
        raise TypeError(
            f"class {cls.__name__} of {where} {'; it '.join(broken)}"
            f" (the contract is {contract.__module__}.{contract.__name__})"
        )


def _members(contract: type) -> list[str]:
    """Names of a Protocol's public members, of its constructor and its `__call__`."""
    names: dict[str, None] = {}  # a set in order
    for base in reversed(contract.__mro__):
        if base in (object, Generic, Protocol):
            continue
        found = [*vars(base).get("__annotations__", {}), *vars(base)]
        names |= dict.fromkeys(name for name in found if not name.startswith("_"))
        # A Protocol without a constructor gets one of Python's.
        made = getattr(vars(base).get("__init__"), "__qualname__", "")
        if made == f"{base.__qualname__}.__init__":
            names["__init__"] = None
        if "__call__" in vars(base):
            names["__call__"] = None
    return [*names]


def _compare(cls: type, contract: type, name: str) -> str:
    """Says what is wrong with one member of a class; empty if it fits."""
    wanted = getattr(contract, name, None)
    if not inspect.isfunction(wanted):
        there = hasattr(cls, name) or name in getattr(cls, "__dataclass_fields__", ())
        return "" if there else f"lacks the attribute {name}"
    _, *arguments = inspect.signature(wanted).parameters.values()
    call = f"{name}({', '.join(argument.name for argument in arguments)})"
    # A class without a `__call__` has that of its type, which makes the instances.
    defined = any(name in vars(base) for base in cls.__mro__)
    if not defined or not callable(getattr(cls, name)):
        return f"lacks the method {call}"
    signature = _call_signature(cls, name)
    only = inspect.Parameter.POSITIONAL_ONLY
    by_position = [None for argument in arguments if argument.kind is only]
    by_name = {a.name: None for a in arguments if a.kind is not only}
    try:
        signature.bind(*by_position, **by_name)
    except TypeError:
        return f"has {name}{signature}, wanted {call}"
    return ""


def _call_signature(cls: type, name: str) -> inspect.Signature:
    """The arguments of a method or of the constructor, without `self`."""
    if name == "__init__":
        return inspect.signature(cls)
    signature = inspect.signature(getattr(cls, name))
    return signature.replace(parameters=[*signature.parameters.values()][1:])
