"""The softmax loss (the baseline) beside the sigmoid loss, in miniature.

    python -m align_jax.sweep --sweep=configs/sweeps/mini_losses.py \
        --workdir=runs/ablations

The second sigmoid run starts from the bias log(1 / 127), the logarithm of the number of
matching texts over that of other texts for a picture in a batch of 128 pairs. SigLIP's
bias of -10 fits 22,000 pairs.

Hardware: 2 CPU cores, under 15 minutes.
Expected: see docs/ablations.md.
"""

from ml_collections import ConfigDict

from configs.sweeps import losses, mini
from configs.sweeps.choose_run import choose_run


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = mini.get_config()
    return {
        "baseline": (base, {}),
        "sigmoid": (base, losses.SIGMOID),
        "sigmoid_bias": (base, losses.SIGMOID | {"model.logit_bias_init": -4.84}),
    }


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
