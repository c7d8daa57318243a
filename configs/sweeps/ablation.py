"""The base config of the paper's ablations (arXiv 2102.05918, section 6).

Every run has 1 million steps instead of 1.2 million, and is scored by retrieval on
MSCOCO and by nearest neighbours on ImageNet. `python -m align_jax.sweep` runs the
sweeps of this folder. Flags after `--` are for the runs, such as the data's paths:

    python -m align_jax.sweep --sweep=configs/sweeps/towers.py --workdir=DIR \
        --launcher=print -- --distributed \
        --config.input.datasets.corpus.directory=gs://BUCKET/corpus/records \
        --config.vocabulary=gs://BUCKET/corpus/records/vocabulary.txt
"""

from ml_collections import ConfigDict

from align_jax.models import bert, efficientnet
from configs import pretrain_align_b7_base, zero_shot

EMBEDDING_SIZE = 640  # width of B7; other towers are projected to it


def get_config(image: str = "b5", text: str = "base") -> ConfigDict:
    """Returns the run of two towers by name; B5 and Base are Table 8's baseline."""
    config = pretrain_align_b7_base.get_config()
    config.total_steps = 1_000_000
    tower = config.model.image_tower
    tower.width, tower.depth = efficientnet.VARIANTS[image]
    if image != "b7":
        config.model.embedding_size = EMBEDDING_SIZE
    tower = config.model.text_tower
    tower.layers, tower.hidden = bert.SIZES[text]
    if "l2" in image or "large" in text:
        config.fsdp = 8  # their state is split, which changes no result
    config.evaluate_every_steps = 100_000
    config.evaluators = {
        name: zero_shot.EVALUATIONS[name] for name in ("coco", "neighbours")
    }
    return config
