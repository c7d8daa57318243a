"""The paper's Table 8, embedding dimensions: 640 (the baseline), 320, 160 and 80.

    python -m align_jax.sweep --sweep=configs/sweeps/embedding_size.py --workdir=DIR ...

Hardware: 4 runs of 1024 virtual cores each; see docs/ablations.md.
Expected, from the paper: recall@1 of texts and images (MSCOCO) and of neighbours:
51.7, 37.5, 64.6 (640); 50.3, 34.1, 64.0 (320); 47.0, 34.4, 63.7 (160); 42.0, 29.3, 61.9
(80). Not run here.
"""

from ml_collections import ConfigDict

from configs.sweeps import ablation
from configs.sweeps.choose_run import choose_run

SIZES = (320, 160, 80)


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = ablation.get_config()
    return {"baseline": (base, {})} | {
        f"embedding_{size}": (base, {"model.embedding_size": size}) for size in SIZES
    }


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
