"""The quickstart with the paper's optimizer, longer texts and more augmentation.

    python main.py --config=configs/quickstart_paper.py --workdir=runs/quickstart_paper

It is the base of the ablations in miniature (`configs/sweeps/mini.py`) and the baseline
of the bench of recipes (`configs/recipes.py`).

Hardware: 2 CPU cores, 10 minutes; it needs the quickstart's data (`make data`).
Expected: recall@5 of 0.31 on unseen drawings (chance 0.004) and of 0.18 on unseen
concepts (chance 0.025).
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """Returns the run's config."""
    config = quickstart.get_config()
    config.total_steps = 2100
    config.input.preprocess.crop_area = 0.5
    config.input.preprocess.colour_jitter = 0.5
    config.model.image_tower.drop_rate = 0.1  # half of the paper's, for a small tower
    config.model.text_tower.max_tokens = 12
    config.optimizer.kind = "lamb"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 40
    config.optimizer.decay = "linear"
    config.optimizer.cooldown_steps = 0
    # With the full rate the text tower learns half as fast.
    config.optimizer.rate_factors = (("^text_tower/layer_", 0.15),)
    return config
