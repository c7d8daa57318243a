"""Cuts a dual encoder to the first components of its embeddings.

They are good embeddings if the model was trained with `config.loss.widths` (arXiv
2205.13147).
"""

import dataclasses
import numbers
from typing import Any

from align_jax.errors import InputError
from align_jax.weights.folder import Weights, is_dual_encoder

IMAGE, TEXT = ("params", "image_projection"), ("params", "text_projection")


def narrow(weights: Weights[Any], width: int | None) -> Weights[Any]:
    """Returns the weights of the model whose embeddings are prefixes of the given ones.

    Its embeddings are the first components of the model's, scaled to unit length.

    Args:
      weights: weights of any type.
      width: number of components to keep; None keeps all and returns the weights
        themselves.

    Raises:
      InputError: the weights are not those of a dual encoder, or the width is not from
        1 to that of its embeddings.
    """
    if width is None:
        return weights
    if not is_dual_encoder(weights):
        raise InputError(
            f"width is {width}, but one {weights.kind} has no embeddings to cut; wanted"
            " a dual encoder"
        )
    config = weights.config
    if isinstance(width, bool) or not isinstance(width, numbers.Integral):
        raise InputError(f"width is {width!r}; wanted a whole number")
    if not 1 <= width <= config.width:
        raise InputError(
            f"width is {width}; the model's embeddings have {config.width} numbers,"
            " wanted 1 or more of them"
        )
    if width == config.width:
        return weights
    if config.embedding_size is None:
        config = dataclasses.replace(config, embedding_prefix=width)
    else:
        config = dataclasses.replace(config, embedding_size=width)
    return dataclasses.replace(
        weights,
        config=config,
        variables={
            path: array[..., :width] if path[:2] in (IMAGE, TEXT) else array
            for path, array in weights.variables.items()
        },
        unused={},
    )
