"""Arguments and results of the contrastive loss's passes over a device's logits."""

import dataclasses
from typing import Generic, NamedTuple, TypeVar

import jax

from align_jax.losses.tiles import Tiling

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Logits:
    """The logits z_ij = x_i . y_j / temperature of this device's images and all texts.

    Attributes:
      ximg: (n, D) images of this device.
      all_texts: (N, D) texts of all devices.
      temperature: () divisor of the products.
      tiling: division of the logits into tiles.
    """

    ximg: jax.Array
    all_texts: jax.Array
    temperature: jax.Array
    tiling: Tiling


class Directions(NamedTuple, Generic[Value]):
    """A value for each direction of the loss.

    Attributes:
      i2t: value for image to text, along the rows of the logits.
      t2i: value for text to image, along their columns.
    """

    i2t: Value
    t2i: Value


class LogitStatistics(NamedTuple):
    """Statistics of the logits that the loss and its metrics need.

    Attributes:
      row_lse: (n,) natural log-sum-exp of each image over its candidates.
      best_text: (n,) best logit of each image with another pair's text.
      column_lse: (N,) natural log-sum-exp of each text over this device's images.
      best_image: (N,) best logit of each text with another pair's image of this device.
    """

    row_lse: jax.Array
    best_text: jax.Array
    column_lse: jax.Array
    best_image: jax.Array
