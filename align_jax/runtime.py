"""What a process needs before it computes: quiet logs, devices, compilation cache."""

import os
import pathlib


def start() -> None:
    """Prepares TensorFlow and JAX; call once, before either computes.

    TensorFlow only reads data, so it is kept off the accelerators. Compiled programs
    are kept in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/align_jax.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    if not jax.config.jax_compilation_cache_dir:
        cache = pathlib.Path.home() / ".cache" / "align_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
