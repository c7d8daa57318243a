"""The paper's Tables 9 and 10: how much data, and how noisy, for two sizes of model.

    python -m align_jax.sweep --sweep=configs/sweeps/data.py --workdir=DIR ...

The runs on CC3M take a tenth of the steps, as in the paper. So do the runs on 3, 6 and
12 million pairs of the noisy corpus, for which the paper does not state the steps.

Hardware: 9 runs of 1024 virtual cores each; see docs/ablations.md.
Expected, from the paper: recall@1 of texts and images (MSCOCO) and of neighbours: B7
and Base 55.4, 41.7, 69.3 (full), 52.0, 39.2, 68.8 (tenth), 18.9, 15.5, 48.7 (CC3M),
23.8, 17.5, 51.4 (12 million noisy pairs), 15.8, 11.9, 47.9 (6 million), 8.1, 6.3, 41.3
(3 million); B3 and Mini 37.4, 24.5, 56.5 (full), 36.7, 24.4, 55.8 (tenth), 22.1, 17.3,
48.9 (CC3M). Not run here.
"""

from ml_collections import ConfigDict

from configs import pretrain_b3_mini_cc3m
from configs.sweeps import ablation
from configs.sweeps.choose_run import choose_run

DATA = "input.datasets"
CC3M = {
    f"{DATA}.corpus.directory": pretrain_b3_mini_cc3m.RECORDS,
    "vocabulary": pretrain_b3_mini_cc3m.VOCABULARY,
}
TENTH = {"total_steps": 100_000, "evaluate_every_steps": 10_000}


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    runs = {}
    for image, text in (("b7", "base"), ("b3", "mini")):
        base = ablation.get_config(image, text)
        runs[f"{image}_{text}"] = (base, {})
        runs[f"{image}_{text}_tenth"] = (base, {f"{DATA}.corpus.fraction": 0.1})
        runs[f"{image}_{text}_cc3m"] = (base, CC3M | TENTH)
    base = ablation.get_config("b7", "base")
    for millions in (12, 6, 3):
        pairs = {f"{DATA}.corpus.max_pairs": millions * 1_000_000}
        runs[f"b7_base_{millions}m"] = (base, pairs | TENTH)
    return runs


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
