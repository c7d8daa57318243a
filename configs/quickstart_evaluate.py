"""Evaluates a trained quickstart again, or another model on the quickstart's pictures.

    python main.py --config=configs/quickstart_evaluate.py \
        --workdir=runs/quickstart_evaluation --config.checkpoint=runs/quickstart

Hardware: 2 CPU cores, half a minute.
Expected: the same scores as in the results.json of the run.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """Returns the evaluation's config, one line a field."""
    config = ConfigDict()
    config.run = "evaluate"
    config.checkpoint = "runs/quickstart"
    config.evaluators = quickstart.get_config().evaluators
    return config
