"""What the contrastive loss computes from a device's logits, and what it is given."""

import dataclasses
from typing import Generic, NamedTuple, TypeVar

import jax

from align_jax.losses.tiles import Tiling

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Logits:
    """The logits z_ij = x_i . y_j / temperature of this device's images and all texts.

    Attributes:
      ximg: (n, D), this device's images.
      all_texts: (N, D).
      temperature: (), which divides the products.
      tiling: how they are walked.
    """

    ximg: jax.Array
    all_texts: jax.Array
    temperature: jax.Array
    tiling: Tiling


class Directions(NamedTuple, Generic[Value]):
    """A value for each direction of the loss.

    Attributes:
      i2t: of image to text, which sees the rows of the logits.
      t2i: of text to image, which sees their columns.
    """

    i2t: Value
    t2i: Value


class LogitStatistics(NamedTuple):
    """What the loss and its metrics need of the logits.

    Attributes:
      row_lse: (n,) an image's log-sum-exp.
      best_text: (n,) an image's best logit with another pair's text.
      column_lse: (N,) a text's log-sum-exp over this device's images.
      best_image: (N,) a text's best logit with another pair's image of this device.
    """

    row_lse: jax.Array
    best_text: jax.Array
    column_lse: jax.Array
    best_image: jax.Array
