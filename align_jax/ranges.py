"""Ranges of the numbers in a config, written as annotations of a dataclass's fields.

A field `layers: Count = 12` takes whole numbers from 1 on. `config.read_config` checks
the range, also of each number inside a tuple or a dict. A range without a name here is
written out, as in `fraction: Annotated[float, Range(above=0, most=1)]`.

JAX computes with 32 bits. So every number must fit in 32 bits, except that `most` may
allow larger whole numbers, and no number may be NaN or infinite.
"""

import dataclasses
from typing import Annotated

INT32 = 2**31 - 1  # largest whole number of 32 bits
INT64 = 2**63 - 1
# Smallest float32 above 0 with all its digits, and the largest one.
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number; None is no bound.

    Attributes:
      least: smallest number of the range.
      above: largest number below the range.
      most: largest number of the range.
      below: smallest number above the range.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        """Returns whether a number is in the range."""
        return (
            (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        """Returns the range in words, as in "0 to 1" or "above 0, below 1"."""
        if self.least is not None and self.most is not None:
            return f"{self.least} to {self.most}"
        bounds = {
            "{} or more": self.least,
            "above {}": self.above,
            "up to {}": self.most,
            "below {}": self.below,
        }
        return ", ".join(w.format(b) for w, b in bounds.items() if b is not None)


ANY = Range()

Count = Annotated[int, Range(least=1)]  # of things of which there is one or more
Natural = Annotated[int, Range(least=0)]
# Training multiplies a seed by 2**32 and adds a step; the sum has 64 bits.
Seed = Annotated[int, Range(least=0, most=INT32)]
Side = Annotated[int, Range(least=1, most=65_535)]  # pixels; the longest of a JPEG file
Share = Annotated[float, Range(least=0, most=1)]
ProperShare = Annotated[float, Range(least=0, below=1)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]


def find_fault(number: float, allowed: Range) -> str:
    """Returns in words which numbers are wanted in place of one; "" if it is allowed.

    Args:
      number: an int or a float.
      allowed: range of the field; `ANY` if the field has none.
    """
    if number not in allowed:
        return str(allowed)
    if isinstance(number, int):
        largest = int(max(INT32, allowed.most or 0))
        return "" if abs(number) <= largest else f"a whole number up to {largest}"
    if number == 0 or SMALLEST <= abs(number) <= LARGEST:
        return ""
    return f"a finite number, 0 or from {SMALLEST:.2g} to {LARGEST:.2g} in size"
