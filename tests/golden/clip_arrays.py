"""Weights and inputs of the golden CLIP and SigLIP, computed wherever needed."""

import math
import zlib

import numpy as np

# Standard deviations of the parameters, so large that the embeddings depend on the
# picture and the text: rounding errors are far smaller than their differences.
TABLES, CLASS = 0.5, 0.3
GAIN = 1.5  # of dense layers and convolutions, divided by the root of their inputs


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws a tensor by its name, far from a new model's."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    if name == "logit_scale":
        return np.full(shape, 2.3, np.float32)
    if name == "logit_bias":
        return np.full(shape, -3.25, np.float32)
    last = name.split(".")[-1]
    if len(shape) < 2:
        is_gain = last == "weight"
        spread = CLASS if "class_embedding" in name else 0.1
        values = draw.normal(float(is_gain), spread, shape)
    elif any(word in name for word in ("embedding.weight", "pos_embed", "positional")):
        values = draw.normal(0.0, TABLES, shape)
    elif last in ("probe", "latent"):
        values = draw.normal(0.0, 1.0, shape)
    else:
        entering = math.prod(shape[1:])
        if last in ("proj", "text_projection"):  # OpenCLIP's are (in, out)
            entering = shape[0]
        values = draw.normal(0.0, GAIN * entering**-0.5, shape)
    return values.astype(np.float32)


def pixels(size: int) -> np.ndarray:
    """Draws three scaled pictures (3, size, size, 3): smooth waves with noise."""
    draw = np.random.default_rng(size)
    y, x = np.mgrid[:size, :size] / size
    waves = draw.uniform(1, 5, (3, 3, 2)) @ np.stack([y, x]).reshape(2, -1)
    waves = np.sin(waves.reshape(3, 3, size, size)).transpose(0, 2, 3, 1)
    return (waves + draw.normal(0.0, 0.3, waves.shape)).astype(np.float32)


def tokens(rows: int, length: int, end: int, pad: int) -> np.ndarray:
    """Draws three texts (3, length): two padded ones and one of full length.

    The ids before `end` are below `rows` and neither `end` nor `pad`.
    """
    draw = np.random.default_rng(length)
    ids = [i for i in range(rows) if i not in (end, pad)]
    found = np.full((3, length), pad, np.int32)
    for row, count in enumerate((3, length // 2, length - 1)):
        found[row, :count] = draw.choice(ids, count)
        found[row, count] = end
    return found
