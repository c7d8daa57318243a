"""align_jax: the open ALIGN (arXiv 2102.05918) for JAX."""


def load(source: str):
    """Loads a trained dual encoder; see `align_jax.embed.model.load`."""
    from align_jax.embed.model import (
        load,  # TensorFlow, which training's core never needs
    )

    return load(source)
