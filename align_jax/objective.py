"""The objective of a run, chosen by config, from embeddings and parameters."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from align_jax.loss import REDUCTIONS, contrastive_loss
from align_jax.models.dual_encoder import temperature_of
from align_jax.sigmoid_loss import sigmoid_loss

KINDS = ("softmax", "sigmoid")
PRECISIONS = ("default", "high", "highest")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The objective.

    Attributes:
      kind: "softmax", ALIGN's, or "sigmoid", which wants `model.logit_bias_init`.
      label_smoothing: share of the uniform target (paper: 0.1); softmax only.
      reduction: "sum" of both directions (paper) or "mean"; softmax only.
      negatives: share of the batch that a pair is compared with (paper's ablation:
        1, 0.5, 0.25); see `make_tiling`.
      tile: texts whose logits are held at a time; None chooses by memory.
      precision: of the logits' products, a name of `jax.lax.Precision`.
      temperature_floor: the learned temperature is kept at or above it.
    """

    kind: str = "softmax"
    label_smoothing: float = 0.1
    reduction: str = "sum"
    negatives: float = 1.0
    tile: int | None = None
    precision: str = "highest"
    temperature_floor: float = 1e-3

    def __post_init__(self):
        choices = {"kind": KINDS, "reduction": REDUCTIONS, "precision": PRECISIONS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"loss.{name} is {getattr(self, name)!r}; known: {', '.join(known)}"
                )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"loss.label_smoothing is {self.label_smoothing}; wanted 0 to below 1"
            )
        if self.temperature_floor <= 0:
            raise ValueError(
                f"loss.temperature_floor is {self.temperature_floor}; wanted above 0"
            )


def compute_loss(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    params: Mapping,
    config: LossConfig,
    mesh: Mesh,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes a run's loss.

    Args:
      image_embeddings: (N, D) of unit length.
      text_embeddings: (N, D) of unit length; row i matches image i.
      params: the dual encoder's, for the temperature and the bias.
      config: the objective.
      mesh: the devices.

    Returns:
      The loss, (), and its metrics, () each.
    """
    embeddings = (image_embeddings, text_embeddings)
    tiles = (config.negatives, config.tile, config.precision)
    temperature = temperature_of(params)
    if config.kind == "sigmoid":
        bias = params["logit_bias"]
        loss, metrics = sigmoid_loss(*embeddings, temperature, bias, mesh, *tiles)
        return loss, metrics | {"logit_bias": bias}
    smoothing, reduction = config.label_smoothing, config.reduction
    return contrastive_loss(
        *embeddings, temperature, mesh, smoothing, reduction, *tiles
    )


def hold_temperature(params: dict, floor: float) -> dict:
    """The parameters with the temperature at or above the floor."""
    for name, lowest in (("temperature", floor), ("log_temperature", jnp.log(floor))):
        if name in params:
            params = params | {name: jnp.maximum(params[name], lowest)}
    return params
