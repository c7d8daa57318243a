"""A run's objective, chosen by config: from embeddings and parameters to the loss."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from align_jax.devices.kernel_choice import CHOICES
from align_jax.losses.contrastive import REDUCTIONS, contrastive_loss
from align_jax.losses.sigmoid import sigmoid_loss
from align_jax.models.dual_encoder import temperature_of

KINDS = ("softmax", "sigmoid", "cross_entropy")
PRECISIONS = ("default", "high", "highest")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Options of the objective.

    Attributes:
      kind: "softmax" (ALIGN's); "sigmoid", which needs `model.logit_bias_init`; or
        "cross_entropy" of labels, which uses only the next field.
      label_smoothing: share of the uniform target (paper: 0.1); not for "sigmoid".
      reduction: "sum" of both directions (paper) or "mean"; softmax only.
      negatives: share of the batch that a pair is compared with (paper's ablation:
        1, 0.5, 0.25); see `make_tiling`.
      tile: number of texts whose logits are held at a time; None chooses by memory.
      precision: precision of the logits' products, a name of `jax.lax.Precision`.
      kernels: "auto" or "plain", see `contrastive_loss`; softmax only.
      temperature_floor: lower bound of the learned temperature.
    """

    kind: str = "softmax"
    label_smoothing: float = 0.1
    reduction: str = "sum"
    negatives: float = 1.0
    tile: int | None = None
    precision: str = "highest"
    kernels: str = "auto"
    temperature_floor: float = 1e-3

    @property
    def contrasts(self) -> bool:
        """Whether pairs are compared with each other."""
        return self.kind != "cross_entropy"

    def __post_init__(self):
        choices = {
            "kind": KINDS,
            "reduction": REDUCTIONS,
            "precision": PRECISIONS,
            "kernels": CHOICES,
        }
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
    outputs: tuple[jax.Array, ...],
    labels: jax.Array | None,
    params: Mapping,
    config: LossConfig,
    mesh: Mesh,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes a run's loss.

    Args:
      outputs: unit embeddings of images and texts, (N, D) each, where row i of one
        matches row i of the other; or a classifier's logits (N, K).
      labels: (N,) labels of the logits; None for embeddings.
      params: parameters of the model, for the temperature and the bias.
      config: options of the objective.
      mesh: mesh of the devices.

    Returns:
      The loss, (), and its metrics, () each.

    Raises:
      ValueError: the objective is cross-entropy and there are no labels.
    """
    if config.kind == "cross_entropy":
        if labels is None:
            raise ValueError("loss.kind is 'cross_entropy', but there are no labels")
        (logits,) = outputs
        return label_loss(logits, labels, config.label_smoothing)
    image_embeddings, text_embeddings = outputs
    temperature = temperature_of(params)
    if config.kind == "sigmoid":
        bias = params["logit_bias"]
        loss, metrics = sigmoid_loss(
            image_embeddings,
            text_embeddings,
            temperature,
            bias,
            mesh,
            negatives=config.negatives,
            tile=config.tile,
            precision=config.precision,
        )
        return loss, metrics | {"logit_bias": bias, "temperature": temperature}
    loss, metrics = contrastive_loss(
        image_embeddings,
        text_embeddings,
        temperature,
        mesh,
        label_smoothing=config.label_smoothing,
        reduction=config.reduction,
        negatives=config.negatives,
        tile=config.tile,
        precision=config.precision,
        kernels=config.kernels,
    )
    return loss, metrics | {"temperature": temperature}


def label_loss(
    logits: jax.Array, labels: jax.Array, smoothing: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns mean cross-entropy of logits (N, K) with labels (N,), and the accuracy.

    A label that is none of the K classes makes the loss NaN, which ends the run.
    """
    classes = logits.shape[1]
    known = (labels >= 0) & (labels < classes)
    targets = jnp.where(known[:, None], jax.nn.one_hot(labels, classes), jnp.nan)
    targets = optax.smooth_labels(targets, smoothing)
    right = jnp.argmax(logits, 1) == labels
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    return loss, {"accuracy": right.mean(dtype=jnp.float32)}


def hold_temperature(params: dict, floor: float) -> dict:
    """Returns the parameters with the temperature at or above the floor."""
    for name, lowest in (("temperature", floor), ("log_temperature", jnp.log(floor))):
        if name in params:
            params = params | {name: jnp.maximum(params[name], lowest)}
    return params
