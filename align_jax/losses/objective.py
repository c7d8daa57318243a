"""A run's objective, chosen by config: from embeddings and parameters to the loss."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from align_jax.config import LATE, READER, check_choices, read_value
from align_jax.devices.kernel_choice import CHOICES
from align_jax.input.phases import check_starts
from align_jax.losses.contrastive import REDUCTIONS, nested_loss
from align_jax.losses.distillation import Teacher, distillation_loss
from align_jax.losses.sigmoid import sigmoid_loss
from align_jax.losses.tiles import EXCHANGES, GATHER
from align_jax.models.dual_encoder import temperature_of
from align_jax.ranges import Count, Natural, Positive, ProperShare, Range, Share

PRECISIONS = ("default", "high", "highest")

Metrics = dict[str, jax.Array]  # () each
Outputs = tuple[jax.Array, ...]  # embeddings (B, D) of both towers, or logits (B, K)
SharesByStep = tuple[tuple[Natural, Share], ...]  # (first step, share), in order


def read_shares(value: Any, where: str) -> SharesByStep:
    """Reads `LossConfig.distillation`; one number holds from step 0 on."""
    shares = ((0, value),) if isinstance(value, int | float) else value
    return read_value(SharesByStep, shares, where)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Options of the objective.

    Attributes:
      kind: a key of `LOSSES`: "softmax" (ALIGN's); "sigmoid", which needs
        `model.logit_bias_init`; or "cross_entropy" of labels, which uses only
        `label_smoothing`.
      label_smoothing: share of the uniform target (ALIGN: 0.1); not for "sigmoid".
      reduction: "sum" of both directions (ALIGN) or "mean"; "softmax" only.
      negatives: share of the batch that a pair is compared with, 1 / a whole number
        (ALIGN's ablation: 1, 0.5, 0.25); see `make_tiling`.
      tile: number of texts whose logits are held at a time, see `make_tiling`; None
        chooses by memory.
      precision: precision of the logits' products, a name of `jax.lax.Precision`.
      kernels: "auto" or "plain", see `contrastive_loss`; "softmax" only.
      temperature_floor: lower bound of the learned temperature, not of its logarithm.
      widths: numbers of components of nested embeddings, from the complete width down;
        the loss is the sum over these prefixes, see `nested_loss`. () for the complete
        embeddings only; "softmax" only.
      width_weights: weight of each width in the sum; () for 1 each.
      distillation: share w of `distillation_loss` in the loss, or shares by step as
        ((step, share), ...) of which the first step is 0. The loss is (1 - w) times
        that of the other fields plus w times the divergences, summed or averaged by
        `reduction`. () for no distillation. It needs `input.teacher_width`.
      teacher_temperature: divisor of the teacher's cosines in the distillation. The
        temperature that the teacher learned is `align_jax.load(TEACHER).temperature`.
        None without distillation.
      exchange: form in which texts meet the images of other devices. "gather": each
        device has all texts. "ring": texts move from device to device, and memory is
        linear in a device's pairs; see `align_jax.losses.exchange`.
    """

    kind: str = "softmax"
    label_smoothing: ProperShare = 0.1
    reduction: str = "sum"
    negatives: Annotated[float, Range(above=0, most=1)] = 1.0
    tile: Count | None = None
    precision: str = "highest"
    kernels: str = "auto"
    temperature_floor: Positive = 1e-3
    widths: tuple[Count, ...] = ()
    width_weights: tuple[Positive, ...] = ()
    distillation: SharesByStep = dataclasses.field(
        default=(), metadata={READER: read_shares}
    )
    teacher_temperature: Positive | None = None
    exchange: str = dataclasses.field(default=GATHER, metadata=LATE)

    @property
    def distils(self) -> bool:
        """Whether the loss of some step has a part of distillation."""
        return any(share for _, share in self.distillation)

    @property
    def contrasts(self) -> bool:
        """Whether pairs are compared with each other."""
        return LOSSES[self.kind].contrasts

    @property
    def wants_bias(self) -> bool:
        """Whether the loss needs the learned bias `logit_bias` of the logits."""
        return LOSSES[self.kind].wants_bias

    def __post_init__(self) -> None:
        choices: dict[str, Iterable[str]] = {
            "kind": LOSSES,
            "reduction": REDUCTIONS,
            "precision": PRECISIONS,
            "kernels": CHOICES,
            "exchange": EXCHANGES,
        }
        check_choices(self, choices, "loss.")
        if self.exchange != GATHER and not self.contrasts:
            raise ValueError(
                f"loss.exchange is {self.exchange!r} and loss.kind {self.kind!r}, which"
                f" compares no pairs; wanted {GATHER!r}"
            )
        if self.widths and self.kind != "softmax":
            raise ValueError(
                f"loss.widths is {self.widths} and loss.kind {self.kind!r}; nested"
                " embeddings want 'softmax'"
            )
        if [*self.widths] != sorted({*self.widths}, reverse=True):
            raise ValueError(
                f"loss.widths is {self.widths}; wanted each width once, from the"
                " largest down"
            )
        if self.width_weights and len(self.width_weights) != len(self.widths):
            raise ValueError(
                f"loss.width_weights has {len(self.width_weights)} weights and"
                f" loss.widths {len(self.widths)} widths; wanted one for each, or ()"
            )
        check_starts("loss.distillation", [step for step, _ in self.distillation])
        if self.teacher_temperature is not None and not self.distillation:
            raise ValueError(
                f"loss.teacher_temperature is {self.teacher_temperature} and"
                " loss.distillation (), which uses none; wanted None"
            )
        if self.distils and not self.contrasts:
            raise ValueError(
                f"loss.distillation is {self.distillation} and loss.kind {self.kind!r},"
                " which compares no pairs; wanted 'softmax' or 'sigmoid'"
            )
        if self.distils and self.teacher_temperature is None:
            raise ValueError(
                f"loss.distillation is {self.distillation} and loss.teacher_temperature"
                " None; wanted a number, as the temperature that the teacher learned"
            )


def compute_loss(
    outputs: Outputs,
    labels: jax.Array | None,
    params: Mapping,
    config: LossConfig,
    mesh: Mesh,
    teacher: Outputs = (),
    step: jax.Array | int = 0,
) -> tuple[jax.Array, Metrics]:
    """Computes a run's loss.

    Args:
      outputs: unit embeddings of images and texts, (N, D) each, where row i of one
        matches row i of the other; or a classifier's logits (N, K).
      labels: (N,) labels of the logits; None for embeddings.
      params: parameters of the model, for the temperature and the bias.
      config: options of the objective.
      mesh: mesh of the devices.
      teacher: a teacher's embeddings of images and texts, (N, E) each.
      step: () number of steps before this one, for the share of distillation.

    Returns:
      The loss, (), and its metrics, () each. For "softmax", these are the metrics of
      `contrastive_loss` or `nested_loss`, and "temperature"; for "sigmoid", those of
      `sigmoid_loss`, "temperature" and "logit_bias"; for "cross_entropy", "accuracy".
      With distillation, "distillation_i2t", "distillation_t2i" and
      "distillation_share" are added.

    Raises:
      ValueError: the batch does not fit the options, see `make_tiling`, the objective
        is cross-entropy and there are no labels, or distillation lacks a teacher.
    """
    found = LOSSES[config.kind].compute(outputs, labels, params, config, mesh)
    if not config.distils:
        return found
    loss, metrics = found
    added, share, others = _distil(outputs, teacher, params, config, mesh, step)
    return (1.0 - share) * loss + share * added, metrics | others


def _distil(
    outputs: Outputs,
    teacher: Outputs,
    params: Mapping,
    config: LossConfig,
    mesh: Mesh,
    step: jax.Array | int,
) -> tuple[jax.Array, jax.Array, Metrics]:
    """Computes `distillation_loss` with a run's options, see `compute_loss`.

    Returns:
      The divergence, its share in the loss, and the metrics; all are ().
    """
    if len(teacher) != 2 or config.teacher_temperature is None:
        raise ValueError("loss.distillation needs the embeddings of a teacher")
    image_embeddings, text_embeddings = outputs
    divergences = distillation_loss(
        image_embeddings,
        text_embeddings,
        temperature_of(params),
        Teacher(*teacher, config.teacher_temperature),
        mesh,
        negatives=config.negatives,
        tile=config.tile,
        precision=config.precision,
        exchange=config.exchange,
    )
    starts, shares = zip(*config.distillation, strict=True)
    phase = jnp.searchsorted(jnp.asarray(starts), step, side="right") - 1
    share = jnp.asarray(shares, jnp.float32)[phase]
    metrics = {f"distillation_{name}": x for name, x in divergences._asdict().items()}
    metrics = jax.tree.map(lax.stop_gradient, metrics) | {"distillation_share": share}
    return (
        REDUCTIONS[config.reduction] * (divergences.i2t + divergences.t2i),
        share,
        metrics,
    )


def softmax_objective(
    outputs: Outputs,
    labels: jax.Array | None,
    params: Mapping,
    config: LossConfig,
    mesh: Mesh,
) -> tuple[jax.Array, Metrics]:
    """Computes `nested_loss` with a run's options, see `compute_loss`.

    Without `config.widths`, this is `contrastive_loss`.
    """
    image_embeddings, text_embeddings = outputs
    temperature = temperature_of(params)
    widths = config.widths or (image_embeddings.shape[1],)
    loss, metrics = nested_loss(
        image_embeddings,
        text_embeddings,
        temperature,
        mesh,
        widths,
        config.width_weights or (1.0,) * len(widths),
        label_smoothing=config.label_smoothing,
        reduction=config.reduction,
        negatives=config.negatives,
        tile=config.tile,
        precision=config.precision,
        kernels=config.kernels,
        exchange=config.exchange,
    )
    return loss, metrics | {"temperature": temperature}


def sigmoid_objective(
    outputs: Outputs,
    labels: jax.Array | None,
    params: Mapping,
    config: LossConfig,
    mesh: Mesh,
) -> tuple[jax.Array, Metrics]:
    """Computes `sigmoid_loss` with a run's options, see `compute_loss`."""
    image_embeddings, text_embeddings = outputs
    temperature, bias = temperature_of(params), params["logit_bias"]
    loss, metrics = sigmoid_loss(
        image_embeddings,
        text_embeddings,
        temperature,
        bias,
        mesh,
        negatives=config.negatives,
        tile=config.tile,
        precision=config.precision,
        exchange=config.exchange,
    )
    return loss, metrics | {"logit_bias": bias, "temperature": temperature}


def label_objective(
    outputs: Outputs,
    labels: jax.Array | None,
    params: Mapping,
    config: LossConfig,
    mesh: Mesh,
) -> tuple[jax.Array, Metrics]:
    """Computes mean cross-entropy and the accuracy, see `compute_loss`.

    A label that is none of the K classes makes the loss NaN, which ends the run.
    """
    if labels is None:
        raise ValueError(f"loss.kind is {config.kind!r}, but there are no labels")
    (logits,) = outputs  # (N, K)
    classes = logits.shape[1]
    known = (labels >= 0) & (labels < classes)
    targets = jnp.where(known[:, None], jax.nn.one_hot(labels, classes), jnp.nan)
    targets = optax.smooth_labels(targets, config.label_smoothing)
    right = jnp.argmax(logits, 1) == labels
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    return loss, {"accuracy": right.mean(dtype=jnp.float32)}


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss that a config can choose.

    Attributes:
      compute: function with the arguments and results of `compute_loss`.
      contrasts: whether pairs are compared with each other.
      wants_bias: whether the loss needs the learned bias `logit_bias` of the logits.
    """

    compute: Callable[..., tuple[jax.Array, Metrics]]
    contrasts: bool = True
    wants_bias: bool = False


LOSSES = {
    "softmax": Loss(softmax_objective),
    "sigmoid": Loss(sigmoid_objective, wants_bias=True),
    "cross_entropy": Loss(label_objective, contrasts=False),
}


def hold_temperature(params: dict, floor: float) -> dict:
    """Returns the parameters with the temperature raised to `floor` if it is below.

    Parameters without a temperature are returned as they are.
    """
    for name, lowest in (("temperature", floor), ("log_temperature", jnp.log(floor))):
        if name in params:
            params = params | {name: jnp.maximum(params[name], lowest)}
    return params
