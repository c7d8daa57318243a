"""Patch dropout of vision transformers (FLIP, arXiv 2212.00794, section 3)."""

import jax
import jax.numpy as jnp

from align_jax.models.layers import kept_indices
from align_jax.models.positions import Rotation


def drop_patches(
    x: jax.Array,
    rotation: Rotation | None,
    key: jax.Array,
    core_ids: jax.Array | None,
    share: float,
) -> tuple[jax.Array, Rotation | None]:
    """Leaves out random patches, at least one of which stays.

    Args:
      x: (B, L, W) patches.
      rotation: rotary positions of the L patches and of the tokens before them, equal
        for all examples; None for none.
      key: random key of this step.
      core_ids: (V,) global index of each virtual core in this batch.
      share: share of the patches to leave out, in [0, 1).

    Returns:
      The K other patches (B, K, W) in their order, and the rotations of these and of
      all tokens before them.
    """
    batch, patches = x.shape[:2]
    count = max(1, patches - round(patches * share))
    kept = kept_indices(key, core_ids, (batch, patches), count)  # (B, K)
    x = jnp.take_along_axis(x, kept[:, :, None], axis=1)
    if rotation is not None:
        before = rotation.cosines.shape[1] - patches
        first = jnp.broadcast_to(jnp.arange(before), (batch, before))
        rotation = rotation.select(jnp.concatenate([first, before + kept], axis=1))
    return x, rotation
