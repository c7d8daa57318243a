"""Table 8's negatives in miniature: all of the batch (the baseline), 1/4 and 1/16.

    python -m align_jax.sweep --sweep=configs/sweeps/mini_negatives.py \
        --workdir=runs/ablations

Hardware: 2 CPU cores, under 15 minutes.
Expected: see docs/ablations.md.
"""

from ml_collections import ConfigDict

from configs.sweeps import mini
from configs.sweeps.choose_run import choose_run

PARTS = (4, 16)  # parts of the batch, of 32 and of 8 pairs


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = mini.get_config()
    return {"baseline": (base, {})} | {
        f"negatives_1_{part}": (base, {"loss.negatives": 1 / part}) for part in PARTS
    }


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
