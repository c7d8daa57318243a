"""One training step: state in, state out, on any number of devices."""

import dataclasses
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from align_jax.loss import contrastive_loss
from align_jax.models.dual_encoder import DualEncoder
from align_jax.sharding import batch_split, replicated


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The objective.

    Attributes:
      label_smoothing: share of the uniform target (paper: 0.1).
      temperature_floor: the learned temperature is kept at or above it.
    """

    label_smoothing: float = 0.1
    temperature_floor: float = 1e-3


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: () int32, steps taken.
      params: parameters of both towers and the temperature, float32.
      batch_stats: BatchNorm's running statistics, float32.
      optimizer: the optimizer's state.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    optimizer: Any


def create_state(
    model: DualEncoder,
    optimizer: optax.GradientTransformation,
    seed: int,
    image_size: int,
    max_tokens: int,
    mesh: Mesh,
) -> TrainState:
    """Initialises a replicated state at step 0 from the seed."""

    def create() -> TrainState:
        variables = model.init(
            jax.random.key(seed),
            jnp.zeros((1, image_size, image_size, 3)),
            jnp.ones((1, max_tokens), jnp.int32),
            jnp.zeros(1, jnp.int32),
            train=False,
        )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            optimizer=optimizer.init(variables["params"]),
        )

    return jax.jit(create, out_shardings=replicated(mesh))()


def make_train_step(
    model: DualEncoder,
    optimizer: optax.GradientTransformation,
    loss: LossConfig,
    virtual_cores: int,
    seed: int,
    mesh: Mesh,
):
    """Compiles `train_step` for a run; call as `step(state, batch)`."""
    whole, split = replicated(mesh), batch_split(mesh)
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        loss=loss,
        virtual_cores=virtual_cores,
        seed=seed,
        mesh=mesh,
    )
    return jax.jit(
        step, in_shardings=(whole, split), out_shardings=whole, donate_argnums=0
    )


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: DualEncoder,
    optimizer: optax.GradientTransformation,
    loss: LossConfig,
    virtual_cores: int,
    seed: int,
    mesh: Mesh,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimizer step on the global batch.

    Args:
      state: before the step; donated when compiled.
      batch: images (B, H, W, 3) and tokens (B, L), split over the mesh.
      model: the dual encoder.
      optimizer: as built by `make_optimizer`.
      loss: the objective.
      virtual_cores: V; core v holds pairs v B/V to (v+1) B/V - 1.
      seed: of the run; masks depend on it, the step and the virtual core only.
      mesh: the devices.

    Returns:
      The state after the step and its scalar metrics.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    core_ids = jnp.arange(virtual_cores)
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (value, (metrics, batch_stats)), gradients = gradient(
        state.params, state.batch_stats, batch, key, core_ids, model, loss, mesh
    )
    updates, optimizer_state = optimizer.update(
        gradients, state.optimizer, state.params
    )
    params = optax.apply_updates(state.params, updates)
    params["temperature"] = jnp.maximum(params["temperature"], loss.temperature_floor)
    metrics |= {
        "loss": value,
        "temperature": state.params["temperature"],
        "gradient_norm": optax.tree.norm(gradients),
    }
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        optimizer=optimizer_state,
    )
    return new_state, metrics


def loss_fn(
    params: dict,
    batch_stats: dict,
    batch: dict[str, jax.Array],
    key: jax.Array,
    core_ids: jax.Array,
    model: DualEncoder,
    loss: LossConfig,
    mesh: Mesh,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict]]:
    """Loss of a batch; returns (loss, (metrics, new running statistics))."""
    (image_embeddings, text_embeddings, temperature), changed = model.apply(
        {"params": params, "batch_stats": batch_stats},
        batch["images"],
        batch["tokens"],
        core_ids,
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    value, metrics = contrastive_loss(
        image_embeddings, text_embeddings, temperature, mesh, loss.label_smoothing
    )
    return value, (metrics, changed["batch_stats"])
