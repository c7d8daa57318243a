"""Translates a traced JAX function into an ONNX model.

JAX has no export to ONNX, and packages that have one bring TensorFlow or other
frameworks with them. Our towers use few operations: `onnx_operations` has them, and the
package `onnx` alone is needed. A new operation is one function and one line there.

The first axis of the input, the batch, has any size; every other size is fixed. Numbers
that do not depend on the input are computed here and stored in the model as constants.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax import export
from jax.extend import core

from align_jax.errors import InputError
from align_jax.weights.onnx_graph import BATCH, Call, Graph, Shape, Tensor, Value
from align_jax.weights.onnx_operations import OPERATIONS

OPSET = 18
IR_VERSION = 9  # of ONNX 1.14; later runtimes read it

# Operations that call a function, those that return their inputs unchanged, and the
# names of the field that holds a called function.
CALLS = """checkpoint closed_call core_call custom_jvp_call custom_vjp_call jit pjit
    remat remat2""".split()
TRANSPARENT = ("name", "optimization_barrier", "sharding_constraint")
FUNCTIONS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def translate(
    function: Callable[[jax.Array], jax.Array],
    like: jax.ShapeDtypeStruct,
    *,
    name: str,
    output: str,
    metadata: Mapping[str, str],
) -> Any:
    """Returns an `onnx.ModelProto` of a function of one array.

    Args:
      function: function from an array (B, ...) to an array (B, ...).
      like: shape, without B, and type of the input.
      name: name of the input.
      output: name of the output.
      metadata: texts to store in the model.

    Raises:
      InputError: the function has an operation that is not known.
    """
    import onnx

    (batch,) = export.symbolic_shape(BATCH)
    traced = jax.make_jaxpr(function)(
        jax.ShapeDtypeStruct((batch, *like.shape), like.dtype)
    )
    graph = Graph(name, batch)
    given = Tensor(name, (batch, *like.shape))
    (result,) = _add_function(graph, traced.jaxpr, traced.consts, [given])
    (described,) = traced.out_avals
    found = graph.expand(result, described.shape)
    graph.nodes.append(onnx.helper.make_node("Identity", [found], [output]))
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "encoder",
            [_describe(name, given.shape, like.dtype)],
            [_describe(output, described.shape, described.dtype)],
            [onnx.numpy_helper.from_array(a, n) for n, a in graph.arrays.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="align_jax",
    )
    onnx.helper.set_model_props(model, dict(metadata))
    return model


def _describe(name: str, shape: Shape, dtype: Any) -> Any:
    """Returns the description of an input or output; a size that varies is a name."""
    import onnx

    sizes = [size if isinstance(size, int) else str(size) for size in shape]
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_value_info(name, kind, sizes)


def _add_function(
    graph: Graph, jaxpr: core.Jaxpr, consts: Sequence[Any], given: Sequence[Value]
) -> list[Value]:
    """Adds the operations of a traced function to a graph; returns its outputs."""
    values: dict[core.Var, Value] = {}

    def read(atom: Any) -> Value:
        if isinstance(atom, core.Literal):
            return np.asarray(atom.val, cast(Any, atom.aval).dtype)
        return values[atom]

    known = [np.asarray(const) for const in consts]
    values |= zip(jaxpr.constvars, known, strict=True)
    values |= zip(jaxpr.invars, given, strict=True)
    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        outputs = _add_operation(graph, equation, inputs)
        values |= zip(equation.outvars, outputs, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _add_operation(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Adds one operation to a graph, or computes it if it does not need the input."""
    kind, fields = equation.primitive.name, equation.params
    if kind == "platform_index":  # the default program; accelerators have others
        index = fields["platforms"].index(None)
        return [np.asarray(index, np.int32)]
    if kind == "cond" and isinstance(inputs[0], np.ndarray):
        branch = fields["branches"][int(inputs[0])]
        return _add_function(graph, branch.jaxpr, branch.consts, inputs[1:])
    if kind in CALLS:
        inner = next(fields[key] for key in FUNCTIONS if key in fields)
        closed = isinstance(inner, core.ClosedJaxpr)
        jaxpr, consts = (inner.jaxpr, inner.consts) if closed else (inner, ())
        return _add_function(graph, jaxpr, consts, inputs)
    if kind in TRANSPARENT:
        return inputs
    out = [atom.aval for atom in equation.outvars]
    fixed = all(isinstance(size, int) for like in out for size in like.shape)
    fixed = fixed and kind != "dim_as_value"  # the size of the batch
    if fixed and all(isinstance(value, np.ndarray) for value in inputs):
        with jax.ensure_compile_time_eval():
            found = equation.primitive.bind(*inputs, **fields)
        multiple = equation.primitive.multiple_results
        return [np.asarray(x) for x in (found if multiple else [found])]
    if kind not in OPERATIONS:
        raise InputError(f"the model has {kind!r}, an operation that ONNX export lacks")
    shapes = [atom.aval.shape for atom in equation.invars]
    return OPERATIONS[kind](Call(graph, inputs, shapes, out, fields))
