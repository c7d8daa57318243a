"""Table 8's embedding dimensions in miniature, all from a run of nested embeddings.

The first run sums the losses of the widths, the second weights them.

    python -m align_jax.sweep --sweep=configs/sweeps/mini_nested.py \
        --workdir=runs/ablations

Hardware: 2 CPU cores, under 20 minutes.
Expected: see docs/ablations.md.
"""

from ml_collections import ConfigDict

from configs.sweeps import mini, mini_embedding_size
from configs.sweeps.choose_run import choose_run

WIDTHS = (mini.EMBEDDING_SIZE, *mini_embedding_size.SIZES)
WEIGHTS = (1.0, 0.25, 0.06, 0.02)  # about each width's share of the components


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = mini.get_config()
    scored = {
        f"evaluators.{name}_{width}": fields.to_dict() | {"width": width}
        for name, fields in base.evaluators.items()
        for width in WIDTHS[1:]
    }
    nested = {"loss.widths": WIDTHS} | scored
    weighted = nested | {"loss.width_weights": WEIGHTS}
    return {"nested": (base, nested), "nested_weighted": (base, weighted)}


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
