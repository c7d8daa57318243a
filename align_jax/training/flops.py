"""The floating-point operations of a training step, counted from its traced program.

Only matrix products and convolutions are counted, as two operations for each pair of a
multiplication and an addition. Work that is repeated by rematerialisation or
microbatches is counted once, as in the model FLOPs utilisation of PaLM (arXiv
2204.02311, appendix B). A step with Pallas kernels is counted as the same step in XLA.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

from align_jax.devices.compiling import tracing
from align_jax.devices.kernel_choice import PLAIN, Kernels
from align_jax.losses.objective import Outputs
from align_jax.models.classifier import Classifier
from align_jax.models.dual_encoder import DualEncoder
from align_jax.models.parameters import key_shape
from align_jax.training.batch_choice import choose_rows
from align_jax.training.hard_pairs import HardPairs
from align_jax.training.step_plan import StepPlan
from align_jax.training.train_state import abstract_state
from align_jax.training.train_step import Part, embed_pairs, encode, score

Batch = dict[str, jax.ShapeDtypeStruct]
Tree = TypeVar("Tree")  # any tree of shapes


def count_model_flops(plan: StepPlan, batch: Batch) -> dict[str, float]:
    """Counts the floating-point operations of a step, forward and backward.

    Args:
      plan: plan of the step.
      batch: shapes of the global batch, or of the super-batch it is chosen from.

    Returns:
      Numbers of operations of one step on all devices together, under the keys
      "image_tower", "text_tower" if the model has one, "loss", and "hard_pairs" if the
      batch is chosen. The last one is the work of choosing, with a forward pass of the
      super-batch. A tower's number includes its projection or the classifier's head.
    """
    return dict(_count_parts(plan, tuple(batch.items())))


@lru_cache(maxsize=16)  # tracing takes seconds, and trials of a search share a plan
def _count_parts(
    plan: StepPlan, shapes: tuple[tuple[str, jax.ShapeDtypeStruct], ...]
) -> dict[str, float]:
    batch = dict(shapes)
    plan = dataclasses.replace(plan, loss=dataclasses.replace(plan.loss, kernels=PLAIN))
    towers = dataclasses.replace(plan, model=_plain(plan))
    state = abstract_state(plan)
    # The towers' work is proportional to the batch: count one BatchNorm group and
    # multiply.
    pairs = plan.model.batch_norm_group
    cores = pairs // plan.pairs_per_core
    groups = plan.virtual_cores // cores
    some = _resized(batch, pairs)

    def embed(params: dict, statistics: dict, batch: dict) -> Outputs:
        key = jax.random.key(0)
        part = Part(batch, jnp.arange(cores))
        return encode(params, statistics, part, key, towers)[0]

    def total(params: dict, statistics: dict, batch: dict) -> tuple[jax.Array, Outputs]:
        outputs = embed(params, statistics, batch)
        return jnp.stack([output.sum() for output in outputs]).sum(), outputs

    both = jax.make_jaxpr(jax.value_and_grad(total, has_aux=True), return_shape=True)
    with tracing():
        traced, results = both(state.params, state.batch_stats, some)
    (_, outputs), gradients = results
    found, count = {}, len(jax.tree.leaves(gradients))
    for index, name in enumerate(plan.model.config.towers):
        own = [False, *(i == index for i in range(len(outputs)))]
        # Towers share no parameters, so those that a tower uses have its gradients.
        _, used = dce_jaxpr(traced.jaxpr, own + count * [False])
        program, _ = dce_jaxpr(traced.jaxpr, own + used[:count])
        found[name] = groups * _count(program)
    outputs = _resized(outputs, groups * pairs)

    def loss(params: dict, outputs: Outputs, batch: dict) -> jax.Array:
        return score(params, outputs, batch, plan, jnp.zeros((), jnp.int32))[0]

    gradient = jax.value_and_grad(loss, (0, 1))
    trained = _resized(batch, groups * pairs)
    found["loss"] = count_flops(gradient, state.params, outputs, trained)
    if plan.hard_pairs:
        found["hard_pairs"] = _count_choice(plan, towers, batch, some)
    return found


def _count_choice(plan: StepPlan, towers: StepPlan, batch: Batch, some: Batch) -> float:
    """Counts the operations of the choice of a batch from its super-batch.

    Args:
      plan: plan of the step.
      towers: the same, with a model that computes nothing twice.
      batch: shapes of the super-batch.
      some: shapes of a part of it, whose forward pass is counted and multiplied.
    """
    state, config = abstract_state(plan), cast(HardPairs, plan.hard_pairs)
    pairs = batch["images"].shape[0]
    embed = partial(embed_pairs, plan=towers)
    outputs = jax.eval_shape(embed, state.params, state.batch_stats, some)
    outputs = _resized(outputs, pairs)
    choose = partial(choose_rows, plan=plan, config=config)
    work = count_flops(choose, batch, state.params, outputs, key_shape())
    if config.weights[0]:
        forward = count_flops(embed, state.params, state.batch_stats, some)
        work += pairs // some["images"].shape[0] * forward
    return work


def _resized(tree: Tree, rows: int) -> Tree:
    """Returns the shapes of arrays with another number of rows."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), tree
    )


def count_flops(function: Callable, *arguments: Any) -> float:
    """Counts the operations of a call of a function, see this module.

    Args:
      function: function that JAX can trace; it is not run.
      *arguments: trees of arrays or of `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: a loop whose length is not known beforehand contains products.
    """
    with tracing():
        traced = jax.make_jaxpr(function)(*arguments).jaxpr
    live, _ = dce_jaxpr(traced, [True] * len(traced.outvars))
    return _count(live)


def _plain(plan: StepPlan) -> DualEncoder | Classifier:
    """Returns a plan's model in XLA, without rematerialisation and sharding."""
    config = plan.model.config.computed_once()
    return plan.model.clone(config=config, placement=None, kernels=Kernels())


def _count(jaxpr: Jaxpr) -> float:
    return float(sum(map(_count_equation, jaxpr.eqns)))


def _count_equation(equation: JaxprEqn) -> float:
    kind, parameters = equation.primitive.name, equation.params
    if kind in PRODUCTS:
        return 2.0 * math.prod(_shape(equation.outvars[0])) * PRODUCTS[kind](equation)
    inner = [_count(jaxpr) for jaxpr in _inner(parameters)]
    if kind == "cond":  # only one branch runs
        return max(inner)
    if kind == "while" and any(inner):
        raise ValueError("products in a loop without a known end cannot be counted")
    times = parameters["length"] if kind == "scan" else 1
    if kind == "shard_map":  # its shapes are those of one device
        times = parameters["mesh"].size
    return times * sum(inner)


def _shape(operand: Any) -> tuple[int, ...]:
    """Returns the shape of an operation's operand or result."""
    return operand.aval.shape


def _terms_of_dot(equation: JaxprEqn) -> int:
    """Returns the number of products summed in one element of a matrix product."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = _shape(equation.invars[0])
    return math.prod(shape[axis] for axis in contracted)


def _terms_of_convolution(equation: JaxprEqn) -> float:
    """Returns the number of products summed in one element of a convolution.

    Products with the zeros that dilation inserts do not count.
    """
    kernel = _shape(equation.invars[1])
    features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    inserted = math.prod(equation.params["lhs_dilation"])
    return math.prod(kernel) / features / inserted


PRODUCTS = {
    "dot_general": _terms_of_dot,
    "conv_general_dilated": _terms_of_convolution,
}


def _inner(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yields the programs among an operation's parameters, such as a loop's body."""
    for value in parameters.values():
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
