"""ALIGN's softmax loss (the baseline) beside SigLIP's sigmoid loss (arXiv 2303.15343).

    python -m align_jax.sweep --sweep=configs/sweeps/losses.py --workdir=DIR ...

Hardware: 2 runs of 1024 virtual cores each; see docs/ablations.md.
Expected: the baseline is that of Table 8: 51.7, 37.5 (MSCOCO), 64.6 (neighbours). No
paper has the sigmoid loss with ALIGN's towers and batch. Not run here.
"""

from ml_collections import ConfigDict

from configs.sweeps import ablation
from configs.sweeps.choose_run import choose_run

# Temperature and bias start as in SigLIP, section 3.2.
SIGMOID = {
    "loss.kind": "sigmoid",
    "model.temperature_form": "log",
    "model.temperature_init": 0.1,
    "model.logit_bias_init": -10.0,
}


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = ablation.get_config()
    return {"baseline": (base, {}), "sigmoid": (base, SIGMOID)}


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
