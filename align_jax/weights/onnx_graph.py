"""An ONNX graph under construction, and the arrays in it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from align_jax.errors import InputError

BATCH = "B"  # name of the size that varies

Shape = tuple[Any, ...]  # whole numbers, and multiples of the batch's size


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array that depends on the input.

    Attributes:
      name: name in the graph.
      shape: shape in the graph. An axis that JAX broadcasts may have size 1, because
        most ONNX operations broadcast it themselves.
    """

    name: str
    shape: Shape


Value = Tensor | np.ndarray  # depends on the input, or is a constant


class Graph:
    """An ONNX graph that grows while a function is translated.

    Attributes:
      nodes: operations in order.
      arrays: stored arrays by name.
    """

    def __init__(self, given: str, batch: Any) -> None:
        """Starts a graph.

        Args:
          given: name of the input.
          batch: JAX's symbol for the size of the batch.
        """
        self.nodes: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}
        self._batch = batch
        self._count = 0
        self._size = self.op("Shape", given, start=0, end=1)  # (1,) int64

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operation and returns the name of its output."""
        import onnx

        self._count += 1
        name = f"{kind.lower()}_{self._count}"
        node = onnx.helper.make_node(kind, list(inputs), [name], **attributes)
        self.nodes.append(node)
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Stores an array and returns its name."""
        self._count += 1
        name = f"constant_{self._count}"
        self.arrays[name] = np.asarray(value, dtype)
        return name

    def name_of(self, value: Value) -> str:
        """Returns the name of an array, whose broadcast axes may have size 1."""
        if isinstance(value, Tensor):
            return value.name
        return self.constant(value, value.dtype)

    def expand(self, value: Value, shape: Shape) -> str:
        """Returns the name of an array with its broadcast axes in full size."""
        name = self.name_of(value)
        if tuple(value.shape) == tuple(shape):
            return name
        return self.op("Expand", name, self.sizes(shape))

    def sizes(self, shape: Shape) -> str:
        """Returns the name of a shape as an array of whole numbers."""
        if all(isinstance(size, int) for size in shape):
            return self.constant(shape)
        parts = []
        for size in shape:
            if isinstance(size, int):
                parts.append(self.constant([size]))
                continue
            times = size // self._batch
            if times * self._batch != size:
                raise InputError(f"a size is {size}; ONNX needs multiples of {BATCH}")
            parts.append(self.op("Mul", self._size, self.constant([times])))
        return self.op("Concat", *parts, axis=0)

    def reshape(self, name: str, shape: Shape) -> str:
        """Reshapes an array; at most one size may depend on the batch."""
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        target = self.constant(sizes) if sizes.count(-1) < 2 else self.sizes(shape)
        return self.op("Reshape", name, target)

    def elementwise(self, kind: str, *inputs: Value, **attributes: Any) -> Tensor:
        """Adds an elementwise operation; the inputs have as many axes as the output."""
        axes = max(len(value.shape) for value in inputs)
        padded = [(1,) * (axes - len(v.shape)) + tuple(v.shape) for v in inputs]
        shape = tuple(
            next((size for size in sizes if size != 1), 1)
            for sizes in zip(*padded, strict=True)
        )
        names = map(self.name_of, inputs)
        return Tensor(self.op(kind, *names, **attributes), shape)


@dataclasses.dataclass(frozen=True)
class Call:
    """One operation of a traced function.

    Attributes:
      graph: graph that the operation is added to.
      inputs: arrays that the operation takes.
      shapes: shapes of the inputs in JAX.
      out: shapes and types of the outputs in JAX.
      fields: parameters of the operation.
    """

    graph: Graph
    inputs: list[Value]
    shapes: list[Shape]
    out: list[Any]
    fields: Mapping[str, Any]

    def expand(self, number: int) -> str:
        """Returns the name of an input with its broadcast axes in full size."""
        return self.graph.expand(self.inputs[number], self.shapes[number])

    def result(self, name: str, number: int = 0) -> Tensor:
        """Returns an output that has its shape in JAX."""
        return Tensor(name, self.out[number].shape)
