"""Families of image towers in miniature, for equal operations, with three seeds each.

    python -m align_jax.sweep --sweep=configs/sweeps/mini_families.py \
        --workdir=runs/ablations

The EfficientNet is the miniatures' baseline. Each of the other towers takes as many
steps as the baseline's operations pay for.

Hardware: 2 CPU cores, 12 runs, about an hour.
Expected: see docs/ablations.md.
"""

from ml_collections import ConfigDict

from align_jax.models import efficientnet_v2
from configs.sweeps import mini
from configs.sweeps.choose_run import choose_run

SEEDS = (0, 1, 2)

EFFICIENTNET_V2 = {
    "kind": "efficientnet_v2",
    "stages": efficientnet_v2.SIZES["s"],
    "width": 0.5,
    "depth": 0.15,
    "drop_rate": 0.1,
    "batch_norm_momentum": 0.97,
}
VIT = {
    "kind": "vit",
    "patch": 8,
    "width": 128,
    "layers": 3,
    "heads": 2,
    "mlp_width": 512,
    "pooling": "mean",
    "position_grid": 4,
    "drop_rate": 0.1,
}
CONVNEXT = {
    "kind": "convnext",
    "stages": ((1, 48), (1, 96), (3, 192)),
    "drop_rate": 0.1,
}

# Fields of each tower (None: the baseline's) and steps.
FAMILIES: dict[str, tuple[dict | None, int]] = {
    "efficientnet": (None, mini.STEPS),
    "efficientnet_v2": (EFFICIENTNET_V2, 562),
    "vit": (VIT, 308),
    "convnext": (CONVNEXT, 385),
}


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = mini.get_config()
    runs = {}
    for name, (tower, steps) in FAMILIES.items():
        changes = {"total_steps": steps, "evaluate_every_steps": steps // 4}
        if tower:
            embedding = {"model.embedding_size": mini.EMBEDDING_SIZE}
            changes |= {"model.image_tower": tower} | embedding
        runs |= {f"{name}_{seed}": (base, changes | {"seed": seed}) for seed in SEEDS}
    return runs


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
