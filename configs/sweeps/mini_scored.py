"""A corpus filtered by a model of it, in miniature: all pairs, best half, any half.

    python -m data.build --config=configs/corpus_quickstart.py \
        --config.embeddings.model=runs/quickstart \
        --config.embeddings.score_fraction=0.5 --workdir=runs/quickstart_scored
    python -m align_jax.sweep --sweep=configs/sweeps/mini_scored.py \
        --workdir=runs/ablations

The first command needs a run of `make quickstart`. It keeps the half of the pairs whose
picture and text that model finds most alike. All runs have equal steps and the same
vocabulary.

Hardware: 2 CPU cores, 40 minutes.
Expected: see docs/ablations.md.
"""

from ml_collections import ConfigDict

from configs.sweeps import mini
from configs.sweeps.choose_run import choose_run

SEEDS = (0, 1, 2)
CORPORA = {
    "all": {},
    "scored": {"input.datasets.emoji.directory": "runs/quickstart_scored/records"},
    "half": {"input.datasets.emoji.fraction": 0.5},
}


def get_sweep() -> dict:
    """Returns the runs by name, each as a base config and its changed fields."""
    base = mini.get_config()
    return {
        f"{name}_{seed}": (base, {"seed": seed} | changes)
        for seed in SEEDS
        for name, changes in CORPORA.items()
    }


def get_config(name: str) -> ConfigDict:
    """Returns the config of one run."""
    return choose_run(get_sweep(), name)
