"""Table 8's embedding dimensions in miniature, from one run of nested embeddings.

    python -m align_jax.sweep --sweep=configs/sweeps/mini_nested.py \
        --workdir=runs/ablations

Hardware: 2 CPU cores, about 5 minutes.
Expected: see docs/ablations.md.
"""

from ml_collections import ConfigDict

from configs.sweeps import mini, mini_embedding_size
from configs.sweeps.choose_run import choose_run

WIDTHS = (mini.EMBEDDING_SIZE, *mini_embedding_size.SIZES)


def get_sweep() -> dict:
    """Returns the run by name, as a base config and its changed fields."""
    base = mini.get_config()
    scored = {
        f"evaluators.{name}_{width}": fields.to_dict() | {"width": width}
        for name, fields in base.evaluators.items()
        for width in WIDTHS[1:]
    }
    return {"nested": (base, {"loss.widths": WIDTHS} | scored)}


def get_config(name: str) -> ConfigDict:
    """Returns the config of the run."""
    return choose_run(get_sweep(), name)
