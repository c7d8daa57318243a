"""align_jax: the open ALIGN (arXiv 2102.05918) for JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align_jax.embed.model import Model

__version__ = "0.1.0"


def load(source: str, batch_size: int = 128, width: int | None = None) -> "Model":
    """Loads a trained dual encoder, and begins to compile its two encoders.

    A process that ends earlier waits for that.

    Args:
      source: any source that `align_jax.weights.source.open_weights` reads, such as the
        workdir of a run.
      batch_size: pictures or texts that all devices together embed at a time.
      width: number of the embeddings' first components to keep, for a model that was
        trained with nested embeddings; None for all.

    Raises:
      InputError: the source is missing or damaged, or holds no dual encoder, the batch
        size is below 1, or the embeddings have fewer components than the width.
    """
    from align_jax.devices.runtime import keep_programs
    from align_jax.embed import model

    keep_programs()
    loaded = model.load(source, batch_size, width)
    loaded.embedder.prepare()
    return loaded
