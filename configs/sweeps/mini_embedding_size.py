"""Table 8's embedding dimensions in miniature: 240 (the baseline), 60, 15 and 4.

    python -m align_jax.sweep --sweep=configs/sweeps/mini_embedding_size.py \
        --workdir=runs/ablations

Hardware: 2 CPU cores, under 20 minutes.
Expected: see docs/ablations.md.
"""

from ml_collections import ConfigDict

from configs.sweeps import mini
from configs.sweeps.choose_run import choose_run

SIZES = (60, 15, 4)


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = mini.get_config()
    return {"baseline": (base, {})} | {
        f"embedding_{size}": (base, {"model.embedding_size": size}) for size in SIZES
    }


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
