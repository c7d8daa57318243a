"""align_jax: the open ALIGN (arXiv 2102.05918) for JAX."""

__version__ = "0.1.0"


def load(source: str):
    """Loads a trained dual encoder; see `align_jax.embed.model.load`."""
    from align_jax.embed.model import (
        load,  # needs TensorFlow, which the core of training does without
    )

    return load(source)
