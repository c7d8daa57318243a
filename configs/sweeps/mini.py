"""What the miniatures of the ablations share: the quickstart in 600 steps.

They need the quickstart's data, `make data`; `make ablations` runs them all.
"""

from ml_collections import ConfigDict

from configs import quickstart

STEPS = 600
EMBEDDING_SIZE = 240  # the image tower's own width


def get_config() -> ConfigDict:
    """The baseline of all miniatures."""
    config = quickstart.get_config()
    config.total_steps = STEPS
    config.evaluate_every_steps = STEPS // 4
    config.checkpoint.keep = 1
    return config
