"""Chooses the pairs of a step from its super-batch, see `hard_pairs`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from align_jax.input.teacher import FIELDS
from align_jax.losses.chosen_rows import take_rows
from align_jax.losses.objective import Metrics, Outputs
from align_jax.losses.pair_choice import Choice, Judge, choose_pairs
from align_jax.models.dual_encoder import temperature_of
from align_jax.training.hard_pairs import HardPairs
from align_jax.training.microbatches import join_parts, split_parts
from align_jax.training.step_plan import StepPlan

STREAM = 2**31  # sets the random stream of the choice apart from others of a step

Batch = dict[str, jax.Array]


def choose_batch(
    super_batch: Batch,
    params: dict,
    embed: Callable[[Batch], Outputs],
    key: jax.Array,
    plan: StepPlan,
    config: HardPairs,
) -> tuple[Batch, Metrics]:
    """Chooses the batch of a step.

    The learner embeds the super-batch as in evaluation, without dropout and with
    BatchNorm's running statistics, in parts of the size of a microbatch.

    Args:
      super_batch: fields (N, ...) of all pairs that the step reads.
      params: the model's parameters.
      embed: function that embeds a part of the super-batch.
      key: random key of the step.
      plan: plan of the step.
      config: options of the choice.

    Returns:
      The fields (B, ...) of the chosen pairs, split over the mesh, in the order of the
      super-batch, and the mean score of the pairs that were read and chosen.
    """
    outputs: Outputs = ()
    if config.weights[0]:
        parts = config.batches * plan.microbatches
        inputs = {name: super_batch[name] for name in plan.model.inputs}
        outputs = lax.map(embed, split_parts(inputs, parts, plan.mesh))
        outputs = join_parts(outputs, parts, plan.mesh)
    rows, scores = choose_rows(super_batch, params, outputs, key, plan, config)
    batch = {name: take_rows(x, rows, plan.mesh) for name, x in super_batch.items()}
    return batch, {
        "hard_pairs/read_score": scores.mean(),
        "hard_pairs/chosen_score": scores[rows].mean(),
    }


def choose_rows(
    super_batch: Batch,
    params: dict,
    outputs: Outputs,
    key: jax.Array,
    plan: StepPlan,
    config: HardPairs,
) -> tuple[jax.Array, jax.Array]:
    """Draws the rows of a step; see `choose_pairs` for the result.

    Args:
      super_batch: fields (N, ...) of all pairs, with the reference's embeddings.
      params: the model's parameters.
      outputs: the learner's embeddings (N, D) of pictures and texts; () if they do not
        count.
      key: random key of the step.
      plan: plan of the step.
      config: options of the choice.
    """
    learner, reference = config.weights
    judges = []
    if learner:
        bias = params.get("logit_bias", jnp.zeros(()))
        images, texts = outputs
        judges.append(Judge(images, texts, temperature_of(params), bias, learner))
    if reference:
        images, texts = (super_batch[name] for name in FIELDS)
        temperature = jnp.float32(config.reference_temperature)
        bias = jnp.float32(config.reference_bias or 0.0)
        judges.append(Judge(images, texts, temperature, bias, reference))
    choice = Choice(
        count=plan.virtual_cores * plan.pairs_per_core,
        chunks=config.chunks,
        loss=plan.loss.kind,
        gain=config.gain,
        mesh=plan.mesh,
        precision=plan.loss.precision,
    )
    return choose_pairs(judges, jax.random.fold_in(key, STREAM), choice)
