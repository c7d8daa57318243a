"""Counts the memory traffic of a training step on a TPU, with every turn of its loops.

    python -m benchmarks.traffic --config=configs/pretrain_align_b7_base.py \
        --target=v5e:4x4 --cores=64

`--plan` prints the compiler's own count, in which the body of a loop counts once. The
image tower scans the blocks of a stage and the text tower scans its layers, so that is
several times too little. Here every operation of the compiled program counts what it
reads from and writes to HBM, times the turns of the loops around it. Arrays that the
compiler keeps in the core's vector memory do not count. The slice need not be the one
to train on: the traffic of a device depends on its pairs, not on the number of devices.
If a run has phases, only the step of the first one counts.
"""

import argparse
import functools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from align_jax.devices.collectives import SHARED

BITS = {"pred": 8, "token": 0, "opaque": 0}  # other types end with their bits: bf16
ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")
HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
LINE = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*)")
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
CONDITION = re.compile(r"condition=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
# A result that is an operand, by their numbers, as in "{3}: (0, {})".
ALIAS = re.compile(r"\{(\d+)\}: \((\d+), ")
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id"
    " replica-id opt-barrier iota".split()
)
# Custom calls that only name memory.
VIEWS = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast)"')


@dataclass(frozen=True)
class Operation:
    """One line of a compiled program.

    Attributes:
      types: type of the result, with its layout.
      kind: name of the operation, as "fusion".
      operands: values that it reads, by name.
      argument: text between the parentheses, the number of a parameter.
      rest: the line after its operands.
    """

    types: str
    kind: str
    operands: tuple[str, ...]
    argument: str
    rest: str

    @property
    def called(self) -> str:
        """Name of the computation that the operation runs."""
        match = CALLED.search(self.rest)
        assert match, self.rest
        return match[1]


@dataclass(frozen=True)
class Computation:
    """A part of a program: its operations by name, and the name of its result."""

    operations: dict[str, Operation]
    result: str

    @property
    def turns(self) -> int:
        """Number of turns of a loop with this condition: "i < 12" from zero.

        Raises:
          ValueError: the condition is another.
        """
        root = self.operations[self.result]
        limits = [self.operations[name] for name in root.operands]
        numbers = [int(x.argument) for x in limits if x.kind == "constant"]
        if root.kind != "compare" or "direction=LT" not in root.rest or not numbers:
            raise ValueError(f"a loop's turns are not known: {root}")
        return numbers[0]


def bytes_of(types: str) -> int:
    """Returns the bytes in HBM of a type; arrays in other memories do not count."""
    total = 0
    for kind, shape, layout in ARRAY.findall(types):
        if not re.search(r"S\([1-9]\)", layout):
            bits = BITS[kind] if kind in BITS else int(re.sub("[a-z]", "", kind))
            total += math.prod(int(n) for n in shape.split(",") if n) * bits // 8
    return total


def with_padding(text: str) -> str:
    """Returns a compiled program in which all arrays fill the tiles of their layout.

    In "bf16[64,9,9,48]{3,0,2,1:T(8,128)(2,1)}" the last axis takes 128 numbers.
    """

    def pad(match: re.Match[str]) -> str:
        kind, shape, layout = match.groups()
        order, _, rest = (layout or "").partition(":")
        tile = re.match(r"T\(([\d,]+)\)", rest)
        if not shape or not order or not tile:
            return match[0]
        sizes = [int(n) for n in shape.split(",")]
        lengths = reversed(tile[1].split(","))
        for axis, length in zip(order.split(","), lengths, strict=False):
            size = sizes[int(axis)]
            sizes[int(axis)] = -(-size // int(length)) * int(length)
        return f"{kind}[{','.join(map(str, sizes))}]{{{layout}}}"

    return ARRAY.sub(pad, text)


def arrays_of(types: str) -> list[str]:
    """Returns the types of the arrays in a type."""
    return [match[0] for match in ARRAY.finditer(types)]


def _closing(text: str) -> int:
    """Returns the index after the parenthesis that closes the first one."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
    raise ValueError(f"no closing parenthesis in {text[:80]}")


def _read_operation(line: str) -> Operation:
    end = _closing(line) if line.startswith("(") else line.index(" ")
    types, line = line[:end], line[end:].lstrip()
    start = line.index("(")
    end = start + _closing(line[start:])
    argument = line[start + 1 : end - 1]
    operands = tuple(re.findall(r"%([\w.-]+)", argument))
    return Operation(types, line[:start], operands, argument, line[end:])


def read_program(text: str) -> tuple[dict[str, Computation], str]:
    """Reads a compiled program; returns its computations and the name of the first."""
    computations: dict[str, Computation] = {}
    operations: dict[str, Operation] = {}
    name = entry = ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            operations, name = {}, head[2]
            entry = name if head[1] else entry
        elif match := LINE.match(line):
            operations[match[2]] = _read_operation(match[3])
            if match[1]:
                computations[name] = Computation(operations, match[2])
    return computations, entry


def count_traffic(text: str) -> float:
    """Counts the bytes that one run of a compiled program reads and writes in HBM."""
    computations, entry = read_program(text)

    @functools.cache
    def traffic(name: str) -> float:
        operations = computations[name].operations
        return sum(one(operation, operations) for operation in operations.values())

    def one(operation: Operation, around: dict[str, Operation]) -> float:
        kind = operation.kind
        if kind in FREE or kind.endswith("-done") or VIEWS.search(operation.rest):
            return 0.0
        if kind == "while":
            condition = CONDITION.search(operation.rest)
            assert condition, operation.rest
            return computations[condition[1]].turns * traffic(operation.called)
        if kind == "conditional":
            branches = BRANCHES.search(operation.rest)
            assert branches, operation.rest
            return max(traffic(n) for n in re.findall(r"[\w.-]+", branches[1]))
        if kind in ("call", "async-start"):
            return traffic(operation.called)
        operands = [around[name].types for name in operation.operands]
        if kind == "fusion":
            return _fused(computations[operation.called], operation, operands)
        if kind == "copy-start":  # its result is (source, target, a flag)
            return float(sum(map(bytes_of, arrays_of(operation.types)[:2])))
        if kind == "slice-start":  # its result is (sources, target, a flag)
            target = arrays_of(operation.types)[-2]
            read = _plain_bytes(target) if bytes_of(operands[0]) else 0
            return float(read + bytes_of(target))
        if kind in ("dynamic-slice", "slice"):
            return 2.0 * bytes_of(operation.types)
        if kind == "dynamic-update-slice":  # in place
            return 2.0 * bytes_of(operands[1])
        return float(sum(map(bytes_of, [operation.types, *operands])))

    return traffic(entry)


def _fused(inside: Computation, operation: Operation, operands: Iterable[str]) -> float:
    """Counts a fusion: its operands, or the slices that it takes, and its results.

    The arrays of a collective that overlaps with other work are operands and results of
    each fusion beside it. They count at the collective's start and end only.
    """
    passed: dict[int, int] = {}  # number of the operand by that of the result
    if any(SHARED in part.rest for part in inside.operations.values()):
        passed = {int(a): int(b) for a, b in ALIAS.findall(operation.rest)}
    numbers = {
        int(part.argument): name
        for name, part in inside.operations.items()
        if part.kind == "parameter"
    }
    total = 0.0
    for number, operand in enumerate(operands):
        if number not in passed.values() and (size := bytes_of(operand)):
            total += min(size, sum(_reads(inside, numbers[number], size)))
    results = arrays_of(operation.types)
    total -= sum(bytes_of(results[number]) for number in passed)
    return total + sum(_writes(inside, inside.result, operation.types))


def _reads(inside: Computation, name: str, size: int) -> Iterator[int]:
    """Yields what each use of an operand in a fusion reads of its bytes."""
    for user, operation in inside.operations.items():
        if name not in operation.operands:
            continue
        if operation.kind in ("dynamic-slice", "slice"):
            yield _plain_bytes(operation.types)
        elif operation.kind == "dynamic-update-slice" and operation.operands[0] == name:
            yield 0  # written in place
        elif operation.kind == "bitcast":
            yield from _reads(inside, user, size)
        else:
            yield size


def _writes(inside: Computation, name: str, types: str) -> Iterator[int]:
    """Yields what a fusion writes for each of its results."""
    operation = inside.operations[name]
    if operation.kind == "tuple":
        for part, operand in zip(arrays_of(types), operation.operands, strict=True):
            yield from _writes(inside, operand, part)
    elif operation.kind == "bitcast":
        yield from _writes(inside, operation.operands[0], types)
    elif operation.kind == "dynamic-update-slice" and bytes_of(types):
        yield _plain_bytes(inside.operations[operation.operands[1]].types)
    else:
        yield bytes_of(types)


def _plain_bytes(types: str) -> int:
    """Returns the bytes of a type inside a fusion, where layouts name no memory."""
    return bytes_of(re.sub(r"\{[^}]*\}", "", types))


def main() -> None:
    """Compiles a config's step for a slice and prints the traffic of a device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="config of a training run")
    parser.add_argument("--target", default="v5e:4x4", help="a TPU slice")
    parser.add_argument("--cores", required=True, help="virtual cores of the slice")
    parser.add_argument("--kernels", help="image_tower.kernels, if it is in the config")
    flags = parser.parse_args()

    import jax

    from align_jax.command_line import read_command_line
    from align_jax.devices.mesh import make_mesh
    from align_jax.devices.runtime import start
    from align_jax.plan import find_devices
    from align_jax.training.compiled_step import compile_step
    from align_jax.training.train_state import abstract_state
    from align_jax.training.training_runs import read_run_config
    from benchmarks.step_bounds import STATE_BYTES

    changes = [f"--config.virtual_cores={flags.cores}", "--config.input.streams=16"]
    if flags.kernels:
        changes.append(f"--config.model.image_tower.kernels={flags.kernels}")
    argv = ["main.py", f"--config={flags.config}", f"--plan={flags.target}", *changes]
    config = read_run_config(read_command_line(argv).fields)
    start()
    devices = find_devices(flags.target)
    step = config.make_plan(make_mesh(config.fsdp, devices))
    compiled = compile_step(step, config.batch_shapes(step.mesh), norms=True)
    pairs = config.batch_size // len(devices)
    once = compiled.cost_analysis()["bytes accessed"]
    text = str(compiled.as_text())
    whole, padded = count_traffic(text), count_traffic(with_padding(text))
    print(f"{flags.config} on {flags.target}, {pairs} pairs a device and step")
    print(f"{once / 1e9:.1f} GB as the compiler counts, each loop's body once")
    print(f"{whole / 1e9:.1f} GB with all turns, {whole / pairs / 1e9:.2f} GB a pair")
    print(
        f"{padded / pairs / 1e9:.2f} GB a pair with the padding of the layouts' tiles"
    )
    sizes = [x.size for x in jax.tree.leaves(abstract_state(step).params)]
    rest = whole - STATE_BYTES * sum(sizes) / config.fsdp
    print(f"{rest / pairs / 1e9:.2f} GB a pair without the optimizer's")


if __name__ == "__main__":
    main()
