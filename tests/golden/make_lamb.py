"""Writes lamb.npz: 20 steps of LAMB as TensorFlow Addons runs it, in float64.

Run it with Python 3.11 in a separate environment (TensorFlow Addons ended with 0.23):

    pip install tensorflow-cpu==2.15.1 tensorflow-addons==0.23.0 "numpy<2"
    python tests/golden/make_lamb.py tests/golden/lamb.npz
"""

import sys

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

STEPS = 20
SHAPES = {
    "image_tower/stem/kernel": (3, 3, 2, 4),
    "image_tower/stem_norm/scale": (4,),
    "image_tower/stem_norm/bias": (4,),
    "text_tower/output_norm/scale": (6,),
    "text_tower/output/kernel": (6, 5),
    "temperature": (),
}
RATE, DECAY = 0.05, 0.01


def run(start: dict, gradients: dict, excluded: list[str]) -> dict:
    """Returns parameters by step; `excluded` ones get no decay and no trust ratio."""
    variables = {
        name: tf.Variable(value, dtype=tf.float64, name=name)
        for name, value in start.items()
    }
    optimizer = tfa.optimizers.LAMB(
        learning_rate=RATE, weight_decay=DECAY, exclude_from_weight_decay=excluded
    )
    rows = {name: [] for name in start}
    for step in range(STEPS):
        optimizer.apply_gradients(
            (tf.constant(gradients[name][step]), variable)
            for name, variable in variables.items()
        )
        for name, variable in variables.items():
            rows[name].append(variable.numpy())
    return {name: np.stack(values) for name, values in rows.items()}


def main(path: str) -> None:
    """Writes the file."""
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    start["image_tower/stem_norm/bias"][:] = 0.0  # a norm of zero
    gradients = {n: rng.normal(size=(STEPS, *shape)) for n, shape in SHAPES.items()}
    arrays = {f"start/{name}": value for name, value in start.items()}
    arrays |= {f"gradients/{name}": value for name, value in gradients.items()}
    for kind, excluded in (("unmasked", []), ("masked", ["stem_norm"])):
        found = run(start, gradients, excluded)
        arrays |= {f"{kind}/{name}": value for name, value in found.items()}
    np.savez_compressed(path, rate=RATE, decay=DECAY, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
