"""Pretrains the towers of `pretrain_align_b7_base` with fewer operations.

    python main.py --config=configs/pretrain_align_b7_base_2026.py --workdir=DIR \
        --config.input.datasets.corpus.directory=gs://BUCKET/corpus/records \
        --config.vocabulary=gs://BUCKET/corpus/records/vocabulary.txt

Steps and pairs are the paper's. Small pictures and short texts come first, as in CLIPA
(arXiv 2305.07017, 2306.15658). The learning rate is constant until the last fifth of
the steps, as in the best recipe of docs/recipes.md. Full sizes come last.

Hardware: 1024 virtual cores of 16 pairs on any slice that holds them.
Expected: docs/recipes.md has the operations of both configs. The scores are not known:
CLIPA's are of vision transformers. Not run here.
"""

from ml_collections import ConfigDict

from configs import pretrain_align_b7_base


def get_config() -> ConfigDict:
    """Returns the run of B7 and Base with two phases."""
    config = pretrain_align_b7_base.get_config()
    config.phases = (
        (0, {"image_size": 160, "max_tokens": 16}),
        (1_100_000, {}),  # the last 8 % of the steps at 289 pixels and 64 tokens
    )
    config.optimizer.decay = "constant"
    config.optimizer.cooldown_steps = 240_000
    return config
