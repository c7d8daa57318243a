"""The paper's Table 8, negatives in the batch: all (the baseline), a half, a quarter.

    python -m align_jax.sweep --sweep=configs/sweeps/negatives.py --workdir=DIR ...

Hardware: 3 runs of 1024 virtual cores each; see docs/ablations.md.
Expected, from the paper: recall@1 of texts and images (MSCOCO) and of neighbours:
51.7, 37.5, 64.6 (all); 50.2, 37.0, 63.8 (half); 48.7, 35.8, 63.3 (quarter). Not run
here.
"""

from ml_collections import ConfigDict

from configs.sweeps import ablation
from configs.sweeps.choose_run import choose_run

SHARES = (50, 25)  # per cent


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = ablation.get_config()
    return {"baseline": (base, {})} | {
        f"negatives_{share}": (base, {"loss.negatives": share / 100})
        for share in SHARES
    }


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
