"""One training step: state in, state out, on any number of devices."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from align_jax.input.teacher import FIELDS
from align_jax.losses.objective import (
    Metrics,
    Outputs,
    compute_loss,
    hold_temperature,
)
from align_jax.models.batch_norm import mean_over_groups
from align_jax.training.batch_choice import choose_batch
from align_jax.training.integrity import all_finite, join_small, squared_moments
from align_jax.training.microbatches import join_parts, split_parts
from align_jax.training.optimizer import trainable
from align_jax.training.schedule_free import map_points
from align_jax.training.step_plan import StepPlan
from align_jax.training.train_state import TrainState

NORMED = ("gradient", "update")  # trees whose norms are metrics


class Part(NamedTuple):
    """Examples that are encoded together: the global batch or a microbatch.

    Attributes:
      batch: images (B, H, W, 3) and tokens (B, L) or labels (B,).
      core_ids: (V,) global indices of the virtual cores that hold the examples.
    """

    batch: dict[str, jax.Array]
    core_ids: jax.Array


def train_step(
    state: TrainState, batch: dict[str, jax.Array], plan: StepPlan, norms: bool = False
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on the global batch.

    Args:
      state: state before the step; the compiled step reuses its memory (donation).
      batch: images (B, H, W, 3) and tokens (B, L) or labels (B,), split over the mesh;
        perhaps the embeddings of a teacher, see `RunConfig.batch_shapes`. With
        `plan.hard_pairs`, they are those of a super-batch, from which it chooses.
      plan: plan of the step.
      norms: whether the metrics include norms of gradients and updates.

    Returns:
      The state after the step, and scalar metrics of the step: those of `compute_loss`
      and `choose_batch`, "loss", "learning_rate", "finite" (a bool: whether all running
      statistics and moments are finite after the step) and, with `norms`,
      "gradient_norm", "update_norm" and the same of each tower, such as
      "image_tower/gradient_norm".
    """
    key = jax.random.fold_in(jax.random.key(plan.seed), state.step)
    chosen: Metrics = {}
    if plan.hard_pairs:
        embed = partial(embed_pairs, state.params, state.batch_stats, plan=plan)
        batch, chosen = choose_batch(
            batch, state.params, embed, key, plan, plan.hard_pairs
        )
    part = Part(batch, jnp.arange(plan.virtual_cores))
    whole = jax.value_and_grad(loss_fn, has_aux=True)
    gradient = accumulate if plan.microbatches > 1 else whole
    (loss, (metrics, batch_stats)), gradients = gradient(
        state.params, state.batch_stats, part, key, plan, state.step
    )
    updates, optimizer_state = plan.transformation.update(
        gradients, state.optimizer, state.params
    )
    params = optax.apply_updates(state.params, updates)
    hold = partial(hold_temperature, floor=plan.loss.temperature_floor)
    params = hold(params)
    optimizer_state = map_points(hold, optimizer_state, params)
    metrics |= {
        "loss": loss,
        "learning_rate": jnp.asarray(plan.schedule(state.step)),
        # Parameters that are not finite show in the loss of the next step.
        "finite": all_finite([batch_stats, squared_moments(optimizer_state)]),
        **chosen,
    }
    if norms:
        metrics |= _norms(gradients, updates, plan)
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        optimizer=optimizer_state,
        average=state.average,
    )
    decay = plan.optimizer.average_decay
    if state.average is not None and decay is not None:
        average = _follow(state.average, new_state, decay)
        new_state = new_state.replace(average=average)
    return new_state, metrics


def _norms(gradients: dict, updates: dict, plan: StepPlan) -> Metrics:
    """Returns the norms of gradients and updates, for each tower and for all."""
    norms = {}
    for kind, tree in zip(NORMED, (gradients, updates), strict=True):
        squared = {
            name: optax.tree.norm(join_small(x), squared=True)
            for name, x in tree.items()
        }
        for tower in plan.model.config.towers:
            norms[f"{tower}/{kind}_norm"] = jnp.sqrt(squared[tower])
        norms[f"{kind}_norm"] = jnp.sqrt(sum(squared.values()))
    return norms


def drop_norms(metrics: Metrics) -> Metrics:
    """Returns the metrics of `train_step` without those that `norms` adds."""
    names = [f"{kind}_norm" for kind in NORMED]
    return {n: x for n, x in metrics.items() if n.split("/")[-1] not in names}


def _follow(average: dict, state: TrainState, decay: float) -> dict:
    """Returns the moving average after a step.

    The decay rises from 0.1 at step 1 to `decay`, so that the average soon forgets the
    initial values.
    """
    step = state.step.astype(jnp.float32)
    share = jnp.minimum(decay, step / (step + 9.0))
    return optax.tree.add(
        optax.tree.scale(share, average),
        optax.tree.scale(1.0 - share, state.own_variables),
    )


def loss_fn(
    params: dict,
    batch_stats: dict,
    part: Part,
    key: jax.Array,
    plan: StepPlan,
    step: jax.Array,
) -> tuple[jax.Array, tuple[Metrics, dict]]:
    """Returns (loss, (metrics, new running statistics)) of a batch.

    Args:
      params: the model's parameters.
      batch_stats: running statistics before the step.
      part: the global batch.
      key: random key of the step.
      plan: plan of the step.
      step: () number of steps before this one.
    """
    outputs, batch_stats = encode(params, batch_stats, part, key, plan)
    loss, metrics = score(params, outputs, part.batch, plan, step)
    return loss, (metrics, mean_over_groups(batch_stats))


def encode(
    params: dict, batch_stats: dict, part: Part, key: jax.Array, plan: StepPlan
) -> tuple[Outputs, dict]:
    """Returns the model's outputs for a batch, and the new running statistics.

    The arguments are those of `loss_fn`, but `part` may be a microbatch. Updated
    statistics have a leading axis of BatchNorm groups; `mean_over_groups` reduces it.
    """
    params = _gather_outer(_hold_frozen(params, plan), plan)
    outputs, changed = plan.model.apply(
        {"params": params, "batch_stats": batch_stats},
        *(part.batch[name] for name in plan.model.inputs),
        part.core_ids,
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    return outputs, changed.get("batch_stats", {})


def embed_pairs(
    params: dict, batch_stats: dict, batch: dict[str, jax.Array], plan: StepPlan
) -> Outputs:
    """Returns the model's outputs for a batch in evaluation, without a gradient."""
    inputs = [batch[name] for name in plan.model.inputs]
    variables = {"params": _gather_outer(params, plan), "batch_stats": batch_stats}
    outputs: Any = plan.model.apply(variables, *inputs, None, train=False)
    return outputs


def _gather_outer(params: dict, plan: StepPlan) -> dict:
    """Gathers the parameters outside of the towers' blocks, if they are sharded.

    A block gathers its parameters where it uses them.
    """
    placement = plan.model.placement
    if placement is None:
        return params
    towers = plan.model.config.towers
    outer = {name: x for name, x in params.items() if name not in towers}
    gathered = placement.gather(outer)
    for tower, config in towers.items():
        prefix, parts = config.block_prefix, params[tower]
        blocks = {n: x for n, x in parts.items() if prefix and n.startswith(prefix)}
        others = {n: x for n, x in parts.items() if n not in blocks}
        gathered[tower] = blocks | placement.gather(others)
    return gathered


def score(
    params: dict,
    outputs: Outputs,
    batch: dict[str, jax.Array],
    plan: StepPlan,
    step: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """Returns the loss and metrics of the model's outputs for the global batch."""
    params, labels = _hold_frozen(params, plan), batch.get("labels")
    teacher = tuple(batch[name] for name in FIELDS if name in batch)
    return compute_loss(
        outputs, labels, params, plan.loss, plan.mesh, teacher=teacher, step=step
    )


def accumulate(
    params: dict,
    batch_stats: dict,
    whole: Part,
    key: jax.Array,
    plan: StepPlan,
    step: jax.Array,
) -> tuple[tuple[jax.Array, tuple[Metrics, dict]], dict]:
    """Computes `loss_fn` and its gradients in the memory of one microbatch.

    First, all outputs are computed. The loss over all pairs then gives their
    cotangents. Last, each microbatch is computed again for its vector-Jacobian product
    (GradCache, arXiv 2101.06983). Masks are drawn by virtual core, and each BatchNorm
    group lies within one microbatch, so the result equals that of the whole batch, up
    to rounding.

    Returns:
      ((loss, (metrics, new running statistics)), gradients).
    """
    count, mesh = plan.microbatches, plan.mesh
    parts = split_parts(whole, count, mesh)

    def embed(_: None, part: Part) -> tuple[None, tuple[Outputs, dict]]:
        return None, encode(params, batch_stats, part, key, plan)

    _, (outputs, statistics) = lax.scan(embed, None, parts)
    gradient = jax.value_and_grad(
        partial(score, batch=whole.batch, plan=plan, step=step), (0, 1), has_aux=True
    )
    outputs = join_parts(outputs, count, mesh)
    (loss, metrics), (gradients, cotangents) = gradient(params, outputs)
    cotangents = split_parts(cotangents, count, mesh)

    def pull_back(gradients: dict, each: tuple[Part, Outputs]) -> tuple[dict, None]:
        part, cotangent = each
        _, pull = jax.vjp(
            lambda params: encode(params, batch_stats, part, key, plan)[0], params
        )
        (own,) = pull(cotangent)
        return optax.tree.add(gradients, own), None

    gradients, _ = lax.scan(pull_back, gradients, (parts, cotangents))
    # All microbatches start from the same statistics, so the mean of their results is
    # one update with all groups.
    return (loss, (metrics, mean_over_groups(statistics))), gradients


def _hold_frozen(params: Mapping, plan: StepPlan) -> dict:
    """Returns the parameters; those that the optimizer freezes get no gradient."""
    return jax.tree.map(
        lambda x, moves: x if moves else lax.stop_gradient(x),
        params,
        trainable(plan.optimizer, params),
    )
