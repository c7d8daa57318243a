"""Table 9 in miniature: 100 (the baseline), 50, 25 and 10 % of the quickstart's pairs.

    python -m align_jax.sweep --sweep=configs/sweeps/mini_data.py \
        --workdir=runs/ablations

Hardware: 2 CPU cores, under 20 minutes.
Expected: see docs/ablations.md.
"""

from ml_collections import ConfigDict

from configs.sweeps import mini
from configs.sweeps.choose_run import choose_run

SHARES = (50, 25, 10)  # per cent


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = mini.get_config()
    return {"baseline": (base, {})} | {
        f"data_{share}": (base, {"input.datasets.emoji.fraction": share / 100})
        for share in SHARES
    }


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
