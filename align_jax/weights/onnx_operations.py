"""The operations of JAX that are not elementwise, as nodes of an ONNX graph."""

import string
from collections.abc import Callable, Mapping

import numpy as np

from align_jax.errors import InputError
from align_jax.weights.onnx_graph import Call, Tensor, Value

# Elementwise operations that have an equal in ONNX.
ELEMENTWISE = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "copy": "Identity",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sqrt": "Sqrt",
    "stop_gradient": "Identity",
    "sub": "Sub",
    "tanh": "Tanh",
}
REDUCTIONS = {
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_sum": "ReduceSum",
}


def _elementwise(kind: str) -> Callable[[Call], list[Value]]:
    return lambda call: [call.graph.elementwise(kind, *call.inputs)]


def _convert_type(call: Call) -> list[Value]:
    import onnx

    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(call.fields["new_dtype"]))
    return [call.graph.elementwise("Cast", call.inputs[0], to=kind)]


def _square(call: Call) -> list[Value]:
    return [call.graph.elementwise("Mul", call.inputs[0], call.inputs[0])]


def _rsqrt(call: Call) -> list[Value]:
    root = call.graph.elementwise("Sqrt", call.inputs[0])
    return [call.graph.elementwise("Reciprocal", root)]


def _integer_power(call: Call) -> list[Value]:
    exponent = np.asarray(call.fields["y"], call.out[0].dtype)
    return [call.graph.elementwise("Pow", call.inputs[0], exponent)]


def _not_equal(call: Call) -> list[Value]:
    equal = call.graph.elementwise("Equal", *call.inputs)
    return [call.graph.elementwise("Not", equal)]


def _select(call: Call) -> list[Value]:
    which, if_false, if_true = call.inputs
    return [call.graph.elementwise("Where", which, if_true, if_false)]


def _reshape(call: Call) -> list[Value]:
    return [call.result(call.graph.reshape(call.expand(0), call.out[0].shape))]


def _broadcast(call: Call) -> list[Value]:
    """Inserts axes of size 1; `Graph.expand` gives them their full size if needed."""
    value, shape = call.inputs[0], [1] * len(call.out[0].shape)
    axes = call.fields["broadcast_dimensions"]
    for axis, size in zip(axes, value.shape, strict=True):
        shape[axis] = size
    found = call.graph.reshape(call.graph.name_of(value), tuple(shape))
    return [Tensor(found, tuple(shape))]


def _transpose(call: Call) -> list[Value]:
    value, order = call.inputs[0], call.fields["permutation"]
    found = call.graph.op("Transpose", call.graph.name_of(value), perm=[*order])
    return [Tensor(found, tuple(value.shape[axis] for axis in order))]


def _reduce(kind: str) -> Callable[[Call], list[Value]]:
    def reduce(call: Call) -> list[Value]:
        axes = call.graph.constant(call.fields["axes"])
        return [call.result(call.graph.op(kind, call.expand(0), axes, keepdims=0))]

    return reduce


def _concatenate(call: Call) -> list[Value]:
    parts = map(call.expand, range(len(call.inputs)))
    axis = call.fields["dimension"]
    return [call.result(call.graph.op("Concat", *parts, axis=axis))]


def _stack(call: Call) -> list[Value]:
    axis = call.fields["axis"]
    where = call.graph.constant([axis])
    parts = [
        call.graph.op("Unsqueeze", call.expand(i), where)
        for i in range(len(call.inputs))
    ]
    return [call.result(call.graph.op("Concat", *parts, axis=axis))]


def _unstack(call: Call) -> list[Value]:
    table, axis = call.expand(0), call.fields["axis"]
    return [
        call.result(
            call.graph.op("Gather", table, call.graph.constant(i), axis=axis), i
        )
        for i in range(len(call.out))
    ]


def _slice(call: Call) -> list[Value]:
    shape, fields = call.shapes[0], call.fields
    strides = fields["strides"] or [1] * len(shape)
    starts, limits = fields["start_indices"], fields["limit_indices"]
    cuts = [
        (axis, start, limit, stride)
        for axis, (start, limit, stride) in enumerate(
            zip(starts, limits, strides, strict=True)
        )
        if not (start == 0 and limit == shape[axis] and stride == 1)
    ]
    found = call.expand(0)
    if cuts:
        axes, first, ends, steps = map(call.graph.constant, zip(*cuts, strict=True))
        found = call.graph.op("Slice", found, first, ends, axes, steps)
    return [call.result(found)]


def _pad(call: Call) -> list[Value]:
    before, after, between = zip(*call.fields["padding_config"], strict=True)
    if any(between) or min(*before, *after) < 0:
        raise InputError("the model pads inside an array, which ONNX export lacks")
    pads, filling = call.graph.constant([*before, *after]), call.expand(1)
    return [call.result(call.graph.op("Pad", call.expand(0), pads, filling))]


def _gather(call: Call) -> list[Value]:
    """Takes slices of size 1 along one axis, by indices (..., 1)."""
    numbers, (table, indices) = call.fields["dimension_numbers"], call.shapes
    axes = numbers.start_index_map
    axis = axes[0]
    inserted = range(axis, axis + len(indices) - 1)  # axes of the indices in the result
    others = (i for i in range(len(call.out[0].shape)) if i not in inserted)
    taken = tuple(1 if i == axis else size for i, size in enumerate(table))
    if (
        len(axes) != 1
        or numbers.collapsed_slice_dims != axes
        or numbers.offset_dims != tuple(others)
        or numbers.operand_batching_dims
        or tuple(call.fields["slice_sizes"]) != taken
    ):
        raise InputError("the model gathers in a way that ONNX export lacks")
    flat = call.graph.reshape(call.expand(1), indices[:-1])
    return [call.result(call.graph.op("Gather", call.expand(0), flat, axis=axis))]


def _product(call: Call) -> list[Value]:
    sums, batch = call.fields["dimension_numbers"]
    left, right = (len(shape) for shape in call.shapes)
    names = [call.expand(0), call.expand(1)]
    if (sums, batch, right) == (((left - 1,), (0,)), ((), ()), 2):
        return [call.result(call.graph.op("MatMul", *names))]
    letters = iter(string.ascii_lowercase)
    first = [next(letters) for _ in range(left)]
    second = [next(letters) for _ in range(right)]
    shared = (*batch[0], *sums[0]), (*batch[1], *sums[1])
    for i, j in zip(*shared, strict=True):
        second[j] = first[i]
    result = [first[i] for i in batch[0]]
    for own, common in zip((first, second), shared, strict=True):
        result += [letter for i, letter in enumerate(own) if i not in common]
    equation = f"{''.join(first)},{''.join(second)}->{''.join(result)}"
    return [call.result(call.graph.op("Einsum", *names, equation=equation))]


def _convolution(call: Call) -> list[Value]:
    fields, kernel, graph = call.fields, call.inputs[1], call.graph
    numbers = fields["dimension_numbers"]
    plain = all(x == 1 for x in (*fields["lhs_dilation"], fields["batch_group_count"]))
    if not plain or isinstance(kernel, Tensor):
        raise InputError("the model has a convolution that ONNX export lacks")
    before, after = zip(*fields["padding"], strict=True)
    found = graph.op(
        "Conv",
        graph.op("Transpose", call.expand(0), perm=[*numbers.lhs_spec]),
        graph.name_of(np.ascontiguousarray(kernel.transpose(numbers.rhs_spec))),
        strides=[*fields["window_strides"]],
        pads=[*before, *after],
        dilations=[*fields["rhs_dilation"]],
        group=fields["feature_group_count"],
    )
    back = np.argsort(numbers.out_spec).tolist()
    return [call.result(graph.op("Transpose", found, perm=back))]


OPERATIONS: Mapping[str, Callable[[Call], list[Value]]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _convert_type,
    "dot_general": _product,
    "gather": _gather,
    "integer_pow": _integer_power,
    "ne": _not_equal,
    "pad": _pad,
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "slice": _slice,
    "square": _square,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": _unstack,
    **{name: _elementwise(kind) for name, kind in ELEMENTWISE.items()},
    **{name: _reduce(kind) for name, kind in REDUCTIONS.items()},
}
