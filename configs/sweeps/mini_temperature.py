"""Table 8's temperature in miniature: learned (the baseline), 1/24, 1/12 and 1/4.

    python -m align_jax.sweep --sweep=configs/sweeps/mini_temperature.py \
        --workdir=runs/ablations

Hardware: 2 CPU cores, under 20 minutes.
Expected: see docs/ablations.md.
"""

from ml_collections import ConfigDict

from configs.sweeps import mini
from configs.sweeps.choose_run import choose_run

FIXED = (24, 12, 4)  # temperatures of 1 / these
FROZEN = {"optimizer.frozen": ("^temperature$",)}


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = mini.get_config()
    return {"baseline": (base, {})} | {
        f"temperature_1_{part}": (base, {"model.temperature_init": 1 / part} | FROZEN)
        for part in FIXED
    }


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
