"""Checks that a class fulfils the Protocol of the literal dict that holds it.

A config chooses a class by its key in the dict. The class is checked when it is chosen,
so that a missing method is an error at the start of a run and not at its end.
"""

import inspect
from typing import Generic, Protocol


def check_contract(cls: type, contract: type, where: str) -> None:
    """Raises TypeError if a class does not fulfil a Protocol.

    The Protocol's public attributes and methods must exist in the class; the fields of
    a dataclass count as attributes. Methods must accept the Protocol's arguments: by
    position if they stand before a "/" in the Protocol, else by name. The same holds
    for the constructor and `__call__` if the Protocol defines them.

    Args:
      cls: class that the dict holds.
      contract: Protocol of the dict's values.
      where: dict and key of the class, for the message, such as "ENGINES['duckdb']".
    """
    problems = [_compare(cls, contract, name) for name in _members(contract)]
    broken = [problem for problem in problems if problem]
    if broken:
        raise TypeError(
            f"class {cls.__name__} of {where} {'; it '.join(broken)}"
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


def _compare(cls: type, contract: type, name: str) -> str:
    """Returns the fault of one member of a class in words; "" if the member fits."""
    wanted = getattr(contract, name, None)
    if not inspect.isfunction(wanted):
        there = hasattr(cls, name) or name in getattr(cls, "__dataclass_fields__", ())
        return "" if there else f"lacks the attribute {name}"
    _, *arguments = inspect.signature(wanted).parameters.values()
    call = f"{name}({', '.join(argument.name for argument in arguments)})"
    # `getattr` also finds the metaclass's `__call__`, which makes instances.
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
    """Returns the signature of a method or of the constructor, without `self`."""
    if name == "__init__":
        return inspect.signature(cls)
    signature = inspect.signature(getattr(cls, name))
    return signature.replace(parameters=[*signature.parameters.values()][1:])
