"""Counts the collectives of a compiled program, and the bytes that cross slices."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\((.*)")
LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})?\}")
# Groups in rows of [rows, devices]: the numbers 0, 1, ... in a shape, transposed.
COMPUTED = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
# The TPU compiler cuts a collective over several slices into collectives inside the
# slices and an exchange of each device with those at its place in the other slices.
EXCHANGE = re.compile(r'= \((.*?), .* recv\(.*_xla_megascale_transfer_type="(\w+)"')
# It also overlaps a collective with other work. Then each computation that starts it,
# moves a part of it beside other work, or waits for its end has a line of the whole
# collective with `SHARED`. Only the first one has the custom call `START`.
SHARED, START = '"async_collective_fusion_config"', '"AsyncCollectiveStart"'


class Collectives(NamedTuple):
    """The collectives of one kind in a program.

    Attributes:
      operations: number of operations.
      size: bytes of their results on one device.
      crossing: bytes that a device receives from other slices, if every device sends
        its part straight to the devices that need it.
    """

    operations: int = 0
    size: int = 0
    crossing: int = 0


def count_collectives(
    program: str, slices: Sequence[int] | np.ndarray = ()
) -> dict[str, Collectives]:
    """Counts the collectives in the text (HLO) of a compiled program.

    The body of a loop counts once, and so does a collective that overlaps with other
    work in several parts.

    Args:
      program: text of the program.
      slices: number of the slice of each device, in the order of the program's mesh;
        empty for one slice.

    Returns:
      name, as "all-gather" -> collectives of this kind. Kinds without any are left out.
    """
    numbers = np.asarray(slices)
    others = max(len(np.unique(numbers)) - 1, 0)  # other slices
    exchanges = EXCHANGE.findall(program)
    found: dict[str, Collectives] = {}

    def add(kind: str, size: int, received: float) -> None:
        earlier = found.get(kind, Collectives())
        crossing = earlier.crossing + round(size * received)
        found[kind] = Collectives(earlier.operations + 1, earlier.size + size, crossing)

    for results, kind, started, rest in _operations(program):
        # An asynchronous collective returns its operands before its results, and two
        # numbers after them if it is a permute.
        sizes = _sizes(results.replace("u32[]", "") if started else results)
        size = sum(sizes[len(sizes) // 2 :]) if started else sum(sizes)
        crosses = others and not exchanges
        add(kind, size, _received(kind, _groups(rest, numbers)) if crosses else 0.0)
    for results, name in exchanges:
        kind = name.lower().replace("_", "-")
        kind = kind if kind in KINDS else "collective-permute"
        add(kind, sum(_sizes(results)), others * PER_MEMBER[kind](others + 1))
    return found


def _operations(program: str) -> Iterator[tuple[str, str, str, str]]:
    """Yields the groups of `OPERATION` for each collective of a program."""
    for computation in program.split("\n}"):
        starts = START in computation
        for results, kind, started, rest in OPERATION.findall(computation):
            if starts or SHARED not in rest:
                yield results, kind, started, rest


def _sizes(results: str) -> list[int]:
    """Returns the bytes of each array in the text of an operation's results."""
    return [
        BYTES.get(dtype, 4) * math.prod(_numbers(shape))
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results)
    ]


def _received(kind: str, groups: list[np.ndarray]) -> float:
    """Returns the bytes that a device receives from other slices, per byte of results.

    It is the maximum over the devices.

    Args:
      kind: one of `KINDS`.
      groups: numbers of the slices of devices that communicate with each other.
    """
    return max(
        max(len(group) - np.bincount(group)[group]) * PER_MEMBER[kind](len(group))
        for group in groups
    )


# Bytes from each member of a group of that many devices, per byte of results. An
# all-reduce scatters its sums and gathers them.
PER_MEMBER = {
    "all-gather": lambda members: 1 / members,
    "all-reduce": lambda members: 2 / members,
    "reduce-scatter": lambda members: 1.0,
    "all-to-all": lambda members: 1 / members,
    "collective-permute": lambda members: 1.0,  # a group is a source and its target
}


def _groups(operation: str, slices: np.ndarray) -> list[np.ndarray]:
    """Returns the slices of the devices of each group that an operation has."""
    if computed := COMPUTED.search(operation):
        rows, columns, shape, order = computed.groups()
        numbers = np.arange(int(rows) * int(columns)).reshape(_numbers(shape))
        numbers = numbers.transpose(_numbers(order)) if order else numbers
        return [*slices[numbers.reshape(int(rows), int(columns))]]
    listed = LISTED.search(operation)
    if listed and listed[1]:
        return [slices[_numbers(g)] for g in re.findall(r"\{([\d,]+)\}", listed[1])]
    return [slices]  # no groups: all devices


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
