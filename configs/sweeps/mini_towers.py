"""Figure 3 in miniature: two sizes of the image tower by two sizes of the text tower.

    python -m align_jax.sweep --sweep=configs/sweeps/mini_towers.py \
        --workdir=runs/ablations

Hardware: 2 CPU cores, under 20 minutes.
Expected: see docs/ablations.md.
"""

from ml_collections import ConfigDict

from configs.sweeps import mini
from configs.sweeps.choose_run import choose_run

SMALL_IMAGE = {"model.image_tower.width": 0.35, "model.image_tower.depth": 0.1}
SMALL_TEXT = {"model.text_tower.layers": 1, "model.text_tower.hidden": 64}


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = mini.get_config()
    # The smaller image tower is projected to the width of the other, as in the paper.
    small = SMALL_IMAGE | {"model.embedding_size": mini.EMBEDDING_SIZE}
    return {
        "baseline": (base, {}),
        "small_image": (base, small),
        "small_text": (base, SMALL_TEXT),
        "small_both": (base, small | SMALL_TEXT),
    }


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
