"""The base of the miniature ablations: `configs/quickstart_paper.py` in 600 steps.

The miniatures need the quickstart's data (`make data`); `make ablations` runs them all.
"""

from ml_collections import ConfigDict

from configs import quickstart_paper

STEPS = 600
EMBEDDING_SIZE = 240  # width of the quickstart's image tower


def get_config() -> ConfigDict:
    """Returns the baseline of all miniatures."""
    config = quickstart_paper.get_config()
    config.total_steps = STEPS
    config.evaluate_every_steps = STEPS // 4
    config.checkpoint.keep = 1
    return config
