"""Families of image towers for equal operations: B3, V2-S, ViT-S/16 and ConvNeXt-T.

    python -m align_jax.sweep --sweep=configs/sweeps/families.py --workdir=DIR ...

All have BERT-Mini as text tower and pictures of 288 pixels, a multiple of 32. B3 takes
the ablations' million steps. The others take as many as its operations pay for, as
`align_jax.training.flops` counts them.

Hardware: 4 runs of 1024 virtual cores each; see docs/ablations.md.
Expected: no paper compares these towers on ALIGN's data. Not run here.
"""

from ml_collections import ConfigDict

from align_jax.models import convnext, efficientnet_v2, vit
from configs.sweeps import ablation
from configs.sweeps.choose_run import choose_run

IMAGE_SIZE = 288
WIDTH, LAYERS, HEADS, MLP_WIDTH = vit.SIZES["s"]
EXECUTION = {"scan": True, "rematerialise": "blocks"}

V2_S = {"kind": "efficientnet_v2", "stages": efficientnet_v2.SIZES["s"]}
VIT_S16 = {
    "kind": "vit",
    "patch": 16,
    "width": WIDTH,
    "layers": LAYERS,
    "heads": HEADS,
    "mlp_width": MLP_WIDTH,
    "pooling": "mean",
    "position_grid": IMAGE_SIZE // 16,
}
CONVNEXT_T = {"kind": "convnext", "stages": convnext.SIZES["t"]}

# Fields of each tower (None: the ablations' B3) and steps, in whole thousands.
FAMILIES: dict[str, tuple[dict | None, int]] = {
    "b3": (None, 1_000_000),
    "v2_s": (V2_S | EXECUTION, 358_000),
    "vit_s16": (VIT_S16 | EXECUTION, 215_000),
    "convnext_t": (CONVNEXT_T | EXECUTION, 231_000),
}


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = ablation.get_config("b3", "mini")
    runs = {}
    for name, (tower, steps) in FAMILIES.items():
        changes = {
            "total_steps": steps,
            "evaluate_every_steps": steps // 10,
            "input.preprocess.image_size": IMAGE_SIZE,
        }
        runs[name] = (base, changes | ({"model.image_tower": tower} if tower else {}))
    return runs


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
