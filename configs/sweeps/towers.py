"""The paper's Figure 3: five image towers by four text towers.

    python -m align_jax.sweep --sweep=configs/sweeps/towers.py --workdir=DIR ...

Hardware: 20 runs of 1024 virtual cores each; see docs/ablations.md.
Expected, from the paper: larger towers are better; the text tower matters as much as
the image tower for retrieval, but less for neighbours. The figure has no numbers, but
Tables 9 and 10 have `b7_base`: 55.4 and 41.7 on MSCOCO, 69.3 neighbours, and `b3_mini`:
37.4, 24.5, 56.5. Not run here.
"""

from ml_collections import ConfigDict

from configs.sweeps import ablation
from configs.sweeps.choose_run import choose_run

IMAGE = ("b1", "b3", "b5", "b7", "l2")
TEXT = ("mini", "medium", "base", "large")


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    return {
        f"{image}_{text}": (ablation.get_config(image, text), {})
        for image in IMAGE
        for text in TEXT
    }


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
