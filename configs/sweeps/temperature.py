"""The paper's Table 8, temperature: learned (the baseline), 1/128, 1/64 and 1/32.

    python -m align_jax.sweep --sweep=configs/sweeps/temperature.py --workdir=DIR ...

Hardware: 4 runs of 1024 virtual cores each; see docs/ablations.md.
Expected, from the paper: recall@1 of texts and images (MSCOCO) and of neighbours:
51.7, 37.5, 64.6 (learned, ends at about 1/64); 52.2, 36.5, 64.8 (1/128); 52.2, 37.3,
64.8 (1/64); 39.6, 26.9, 61.2 (1/32). Not run here.
"""

from ml_collections import ConfigDict

from configs.sweeps import ablation
from configs.sweeps.choose_run import choose_run

FIXED = (128, 64, 32)  # temperatures of 1 / these
FROZEN = {"optimizer.frozen": ("^temperature$",)}


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = ablation.get_config()
    return {"baseline": (base, {})} | {
        f"temperature_1_{part}": (base, {"model.temperature_init": 1 / part} | FROZEN)
        for part in FIXED
    }


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
