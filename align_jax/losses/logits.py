"""Arguments, results and means of the contrastive loss's passes over logits."""

import dataclasses
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from align_jax.devices.mesh import BATCH_AXES
from align_jax.losses.tiles import RING, Tiling, own_rows

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Logits:
    """The logits z_ij = x_i . y_j / temperature of this device's images and all texts.

    Attributes:
      ximg: (n, D) images of this device.
      texts: (N, D) texts of all devices; (n, D) of this device in the ring form.
      temperature: () divisor of the products.
      tiling: division of the logits into tiles.
    """

    ximg: jax.Array
    texts: jax.Array
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
      column_lse: (N,) natural log-sum-exp of each text over this device's images; (n,)
        over all images in the ring form.
      best_image: (N,) best logit of each text with another pair's image of this device;
        (n,) of all images in the ring form.
    """

    row_lse: jax.Array
    best_text: jax.Array
    column_lse: jax.Array
    best_image: jax.Array


def mean_cosines(logits: Logits, ytxt: jax.Array) -> Directions[jax.Array]:
    """Returns mean cosines of a device's images and texts with their candidates.

    The mean of products is the product with the mean, so no logits are needed.

    Args:
      logits: images (n, D) and texts.
      ytxt: (n, D) texts of this device.

    Returns:
      (n,) each.
    """
    ximg, tiling = logits.ximg, logits.tiling
    group = own_rows(len(ximg)) // tiling.candidates  # (n,)

    def mean_over_devices(x: jax.Array) -> jax.Array:
        sums = tiling.product(jax.nn.one_hot(group, tiling.groups).T, x)
        return lax.psum(sums, BATCH_AXES) / tiling.candidates  # (groups, D)

    if tiling.exchange == RING:
        mean_text = mean_over_devices(ytxt)
    else:
        split = (tiling.groups, tiling.candidates, -1)
        mean_text = logits.texts.reshape(split).mean(1, jnp.float32)  # (groups, D)
    mean_image = mean_over_devices(ximg)
    x, y = ximg.astype(jnp.float32), ytxt.astype(jnp.float32)
    return Directions((x * mean_text[group]).sum(1), (y * mean_image[group]).sum(1))
