import dataclasses
import functools
from typing import Any, ClassVar, Protocol

import pytest

from align_jax.contracts import check_contract, check_instance


class Shape(Protocol):
    """The contract of the classes below."""

    name: str

    def __init__(self, size: int) -> None: ...

    def area(self, scale: float, unit: str) -> float: ...


class Solid(Shape, Protocol):
    """A contract that inherits another with its constructor."""

    @property
    def volume(self) -> float: ...


class Bag(Protocol):
    """A contract without a constructor."""

    def size(self) -> int: ...


class Square:
    name = "square"

    def __init__(self, size):
        self.size = size

    def area(self, scale, unit, rounded=False):
        return self.size**2 * scale


class Flat(Square):
    area = None


class Narrow(Square):
    def area(self, scale):
        return 0


class Renamed(Square):
    def area(self, scale, units):
        return 0


class Fixed:
    def area(self, scale, unit):
        return 0


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Flat, r"class Flat of SHAPES\['x'\] lacks the method area\(scale, unit\) "),
        (Narrow, r"class Narrow .* has area\(scale\), wanted area\(scale, unit\)"),
        (Renamed, r"has area\(scale, units\), wanted area\(scale, unit\)"),
        (Fixed, r"lacks the attribute name; it has __init__\(\), wanted __init__\(siz"),
    ],
)
def test_a_class_that_breaks_its_contract_is_named_with_what_it_lacks(cls, message):
    with pytest.raises(TypeError, match=message) as caught:
        check_contract(cls, Shape, "SHAPES['x']")
    assert str(caught.value).endswith("(the contract is tests.contracts_test.Shape)")


def test_a_class_may_offer_more_than_its_contract():
    check_contract(Square, Shape, "SHAPES['x']")


def test_a_contract_may_inherit_another_and_have_no_constructor():
    class Cube(Square):
        volume = 8.0

        def size(self):
            return 1

    check_contract(Cube, Solid, "SOLIDS['x']")
    check_contract(Cube, Bag, "BAGS['x']")
    with pytest.raises(TypeError, match=r"class Square .* lacks the attribute volume"):
        check_contract(Square, Solid, "SOLIDS['x']")
    with pytest.raises(
        TypeError, match=r"has __init__\(\), wanted .* attribute volume"
    ):
        check_contract(Fixed, Solid, "SOLIDS['x']")


class Filter(Protocol):
    """A contract whose first argument may have any name."""

    size: int

    def __call__(self, points: list, /, scale: float) -> list: ...


@dataclasses.dataclass
class Kept:
    size: int  # without a default, so the class has no attribute `size`

    def __call__(self, corners, scale):
        return corners


class Silent(Kept):
    __call__ = None


class Hasty(Kept):
    def __call__(self, scale):
        return []


class Sized:
    """A class whose only `__call__` is that of every class, which makes instances."""

    size = 1


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Silent, r"lacks the method __call__\(points, scale\)"),
        (Sized, r"lacks the method __call__\(points, scale\)"),
        (Hasty, r"has __call__\(scale\), wanted __call__\(points, scale\)"),
    ],
)
def test_a_call_and_its_arguments_by_position_are_checked(cls, message):
    check_contract(Kept, Filter, "FILTERS['x']")
    with pytest.raises(TypeError, match=message):
        check_contract(cls, Filter, "FILTERS['x']")


class Static(Square):
    @staticmethod
    def area(scale, unit):
        return scale


class OfClass(Square):
    @classmethod
    def area(cls, scale, unit):
        return scale


class Partial(Square):
    area = functools.partialmethod(Square.area, rounded=True)


class StarredArguments(Square):
    def area(self, *arguments, **options):
        return 0


@pytest.mark.parametrize("cls", [Static, OfClass, Partial, StarredArguments])
def test_methods_of_other_kinds_fit(cls):
    check_contract(cls, Shape, "SHAPES['x']")


class NarrowStatic(Square):
    @staticmethod
    def area(self, scale, unit):
        return scale


class Swapped(Square):
    def area(self, unit, scale):
        return scale


class NamesOnly(Square):
    def area(self, *, scale, unit):
        return scale


class PositionsOnly(Square):
    def area(self, scale, unit, /):
        return scale


class MadeByName(Square):
    def __init__(self, *, size):
        self.size = size


class Named(Square):
    def name(self):
        return "square"


class Heir(Shape):
    """Lacks `area`: it inherits the contract's empty method."""

    name = "heir"

    def __init__(self, size):
        self.size = size


@dataclasses.dataclass
class Stored(Square):
    area: Any
    name: str = "stored"

    def __init__(self, size):
        self.size = size


@dataclasses.dataclass
class Unnamed:
    name: ClassVar[str]
    size: int

    def area(self, scale, unit):
        return scale


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NarrowStatic, r"has area\(self, scale, unit\), wanted area\(scale, unit\)"),
        (Swapped, r"has area\(unit, scale\), wanted area\(scale, unit\)"),
        (NamesOnly, r"has area\(\*, scale, unit\), wanted area\(scale, unit\)"),
        (PositionsOnly, r"has area\(scale, unit, /\), wanted area\(scale, unit\)"),
        (MadeByName, r"has __init__\(\*, size\), wanted __init__\(size\)"),
        (Named, "has name as a method, wanted an attribute"),
        (Heir, r"lacks the method area\(scale, unit\)"),
        (Stored, r"lacks the method area\(scale, unit\)"),
        (Unnamed, "lacks the attribute name"),
        (functools.partial(Square, 1), r"SHAPES\['x'\] is functools.*; wanted a class"),
        (Square(1), r"SHAPES\['x'\] is <.*Square.*; wanted a class"),
    ],
)
def test_what_only_seems_to_fit_is_refused(cls, message):
    with pytest.raises(TypeError, match=message):
        check_contract(cls, Shape, "SHAPES['x']")


class Unit(Protocol):
    """A contract with a value that is read from the class."""

    symbol: ClassVar[str]

    @classmethod
    def smallest(cls) -> Any: ...


class Smallest:
    @classmethod
    def smallest(cls):
        return cls


class Metre(Smallest):
    symbol = "m"


class Yard:
    symbol = "yd"

    def smallest(self):
        return self


@dataclasses.dataclass
class Foot(Smallest):
    symbol: str


class Inch(Smallest):
    @property
    def symbol(self):
        return "in"


@pytest.mark.parametrize("cls", [Foot, Inch])
def test_a_class_variable_must_be_on_the_class(cls):
    check_contract(Metre, Unit, "UNITS['x']")
    with pytest.raises(TypeError, match="lacks the attribute symbol of the class"):
        check_contract(cls, Unit, "UNITS['x']")


def test_a_class_method_must_be_one():
    with pytest.raises(TypeError, match="smallest as a method of its instances"):
        check_contract(Yard, Unit, "UNITS['x']")


class Holder(Protocol):
    """The contract of an object."""

    size: int

    def area(self, scale: float, /) -> float: ...


class Wrapped:
    """An object whose members are those of another one."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Box:
    def __init__(self):
        self.size = 1
        self.area = lambda factor: factor


class Lid:
    size = 1
    area = staticmethod(lambda: 0)


def test_an_object_is_checked_with_its_own_members():
    check_instance(Box(), Holder, "a box")
    check_instance(Wrapped(Box()), Holder, "a box")
    with pytest.raises(TypeError, match=r"Lid as a box has area\(\), wanted area\(sca"):
        check_instance(Lid(), Holder, "a box")
    with pytest.raises(TypeError, match=r"lacks the attribute size; it lacks the meth"):
        check_instance(Wrapped(3), Holder, "a box")
