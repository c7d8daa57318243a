"""ALIGN's contrastive loss over the global batch (arXiv 2102.05918, section 4.1).

With unit vectors x_i (images) and y_j (texts), temperature s and N pairs:

    L_i2t = -1/N sum_i log( exp(x_i . y_i / s) / sum_j exp(x_i . y_j / s) )
    L_t2i = -1/N sum_i log( exp(y_i . x_i / s) / sum_j exp(y_i . x_j / s) )
    L     = L_i2t + L_t2i

Label smoothing e mixes the one-hot target with the uniform one over all N:
(1 - e) (lse_i - z_ii) + e (lse_i - mean_j z_ij).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from align_jax.sharding import DATA_AXIS


def contrastive_loss(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    temperature: jax.Array,
    mesh: Mesh,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the loss over all pairs of all devices.

    Each device gathers every text embedding, multiplies them with its own images
    once, and takes both directions from that product. Gradients flow through the
    gather.

    Args:
      image_embeddings: (N, D) of unit length, split over the mesh by rows.
      text_embeddings: (N, D) of unit length, likewise; row i matches image i.
      temperature: () positive divisor of the cosine similarities.
      mesh: the devices; N is a multiple of their number.
      label_smoothing: e above, in [0, 1).

    Returns:
      The summed loss, (), and metrics: each direction's loss and in-batch accuracy.
    """
    rows = PartitionSpec(DATA_AXIS)
    everywhere = PartitionSpec()
    shares = jax.shard_map(
        partial(_device_share, label_smoothing=label_smoothing),
        mesh=mesh,
        in_specs=(rows, rows, everywhere),
        out_specs=everywhere,
    )
    metrics = shares(image_embeddings, text_embeddings, temperature)
    return metrics["i2t_loss"] + metrics["t2i_loss"], metrics


def _device_share(ximg, ytxt, temperature, label_smoothing):
    """Loss and accuracy of both directions from one device's rows ximg, ytxt (n, D)."""
    n = ximg.shape[0]
    all_texts = lax.all_gather(ytxt, DATA_AXIS, tiled=True)  # (N, D)
    logits = ximg @ all_texts.T / temperature  # (n, N)

    first = lax.axis_index(DATA_AXIS) * n
    positive = lax.dynamic_slice_in_dim(logits, first, n, axis=1).diagonal()  # (n,)

    # Image to text: a device holds whole rows.
    row_lse = jax.nn.logsumexp(logits, 1)  # (n,)
    row_mean = logits.mean(1)  # (n,)

    # Text to image: columns are spread over devices; shift by the global maximum.
    column_max = lax.pmax(lax.stop_gradient(logits.max(0)), DATA_AXIS)  # (N,)
    column_sum = lax.psum(jnp.exp(logits - column_max).sum(0), DATA_AXIS)  # (N,)
    column_lse = jnp.log(column_sum) + column_max  # (N,)
    column_mean = lax.pmean(logits.mean(0), DATA_AXIS)  # (N,)

    def mean_loss(lse, mean):
        # lse - (1 - e) z_ii - e mean, the smoothed cross-entropy.
        terms = lse - (1.0 - label_smoothing) * positive - label_smoothing * mean
        return lax.pmean(terms.mean(), DATA_AXIS)

    own = partial(lax.dynamic_slice_in_dim, start_index=first, slice_size=n)
    # A tie with another candidate counts as wrong.
    row_hits = (logits >= positive[:, None]).sum(1) == 1
    all_positive = lax.all_gather(positive, DATA_AXIS, tiled=True)  # (N,)
    column_rank = lax.psum((logits >= all_positive).sum(0), DATA_AXIS)  # (N,)
    return {
        "i2t_loss": mean_loss(row_lse, row_mean),
        "t2i_loss": mean_loss(own(column_lse), own(column_mean)),
        "i2t_accuracy": lax.pmean(row_hits.mean(), DATA_AXIS),
        "t2i_accuracy": lax.pmean((own(column_rank) == 1).mean(), DATA_AXIS),
    }
