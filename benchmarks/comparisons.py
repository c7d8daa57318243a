"""Comparisons: values of ours and of a reference, measured in turn in one run."""

import argparse
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ours beside a reference.

    Attributes:
      name: the measured work, with its size.
      reference: name of the reference.
      unit: unit of the values. One that ends in "/s" is a rate, and more is better; of
        all others less is better.
      ours: our value of each round, all above 0.
      others: the reference's value of each round, as many as `ours`, all above 0.
    """

    name: str
    reference: str
    unit: str
    ours: Sequence[float]
    others: Sequence[float]

    def __post_init__(self) -> None:
        if not 0 < len(self.ours) == len(self.others):
            raise ValueError(
                f"{self.name}: {len(self.ours)} rounds of ours, {len(self.others)} of"
                f" {self.reference}"
            )
        if not min(*self.ours, *self.others) > 0:
            raise ValueError(f"{self.name}: a value is not above 0")

    @property
    def ratios(self) -> list[float]:
        """How many times as good as the reference ours is, in each round."""
        pairs = zip(self.ours, self.others, strict=True)
        if self.unit.endswith("/s"):
            return [ours / other for ours, other in pairs]
        return [other / ours for ours, other in pairs]

    def row(self) -> list[str]:
        """Returns the cells of `HEAD`."""
        ratios, medians = self.ratios, map(statistics.median, (self.ours, self.others))
        ours, others = (f"{value:.4g}" for value in medians)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else ""
        middle = f"{statistics.median(ratios):.2f}"
        return [self.name, self.reference, self.unit, ours, others, middle, spread]


HEAD = ["what", "reference", "unit", "ours", "reference's", "ratio", "spread"]


def add_record_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --record."""
    parser.add_argument(
        "--record", type=pathlib.Path, help="file to add the comparisons to, as JSON"
    )


def record(path: pathlib.Path | None, comparisons: Iterable[Comparison]) -> None:
    """Appends comparisons to a file, a line of JSON for each; None: does nothing."""
    if path is None:
        return
    with path.open("a") as file:
        for comparison in comparisons:
            file.write(json.dumps(dataclasses.asdict(comparison)) + "\n")


def read_comparisons(path: pathlib.Path) -> list[Comparison]:
    """Reads what `record` wrote; a file that does not exist has none."""
    if not path.exists():
        return []
    return [Comparison(**json.loads(line)) for line in path.read_text().splitlines()]
