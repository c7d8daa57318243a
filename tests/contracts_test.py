import dataclasses
from typing import Protocol

import pytest

from align_jax.contracts import check_contract


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
