"""Outputs of dual encoders, compared with those of other codebases."""

import jax
import numpy as np

from align_jax.models.dual_encoder import DualEncoder, temperature_of
from align_jax.models.parameters import unflatten
from align_jax.weights.folder import Weights

NAMES = ("image", "text", "logits")


def compute(weights: Weights, images: np.ndarray, tokens: np.ndarray) -> list:
    """Returns the image embeddings, text embeddings and logits of N pairs.

    Args:
      weights: weights of a dual encoder.
      images: (N, H, W, 3) scaled pictures.
      tokens: (N, L) token ids.
    """
    variables = unflatten(weights.variables)

    @jax.jit
    def embed(variables, images, tokens):
        model = DualEncoder(weights.config, batch_norm_group=1)
        return (
            model.apply(variables, images, method="encode_images"),
            model.apply(variables, tokens, method="encode_texts"),
        )

    images, texts = embed(variables, images, tokens)
    params = variables["params"]
    logits = images @ texts.T / temperature_of(params) + params.get("logit_bias", 0.0)
    return [images, texts, logits]


def assert_close(found: list, expected: list) -> None:
    """Checks that outputs differ by less than 1e-4 of the largest expected number."""
    for name, array, wanted in zip(NAMES, found, map(np.array, expected), strict=True):
        assert np.abs(array - wanted).max() < 1e-4 * np.abs(wanted).max(), name


def assert_golden(found: list, golden: dict) -> None:
    """Checks outputs of three pairs against those of another codebase.

    The embeddings of different pictures and texts differ by far more than the
    tolerance, so that a constant output could not pass.
    """
    assert_close(found, [golden[name] for name in NAMES])
    for name in ("image", "text"):
        cosines = np.array(golden[name]) @ np.array(golden[name]).T
        assert cosines[~np.eye(3, dtype=bool)].max() < 0.95, name
