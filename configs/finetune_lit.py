"""Locked-image tuning: a new text tower learns a locked image tower (LiT).

    python main.py --config=configs/finetune_lit.py:FOLDER --workdir=runs/lit \
        --config.input.datasets.corpus.directory=RECORDS \
        --config.vocabulary=RECORDS/vocabulary.txt

LiT (arXiv 2111.07991) keeps a pretrained image tower and trains a text tower on pairs.
FOLDER is a source of a model with an image tower, such as a CLIP, a SigLIP, a
pretraining run, or a classifier of this project. The picture's embedding is the tower's
output; the text tower has the only projection.

Hardware: 1024 virtual cores of 16 pairs on any slice that holds them.
Expected, from the paper with ViT-g/14: 85.2 % on ImageNet zero-shot (abstract of its
third version). Run here for its mechanics only (docs/tuning.md).
"""

from ml_collections import ConfigDict

from align_jax.weights.starts import describe_start
from configs import pretrain_align_b7_base


def get_config(source: str = "") -> ConfigDict:
    """Returns ALIGN's run of a BERT-Base beside the locked image tower of a model."""
    start = describe_start(source)
    config = pretrain_align_b7_base.get_config()
    config.total_steps = 60_000
    config.initialize = ConfigDict()
    config.initialize.image_tower = source

    config.input.preprocess = ConfigDict(start.preprocess)

    config.model.image_tower = ConfigDict(start.model["image_tower"])
    if "frozen_statistics" in config.model.image_tower:
        config.model.image_tower.frozen_statistics = True  # a locked BatchNorm
    config.model.pixel_mean = start.model["pixel_mean"]
    config.model.pixel_std = start.model["pixel_std"]
    config.model.embedding_size = None  # the locked tower's output is the embedding
    config.model.temperature_form = "log"
    config.model.temperature_init = 0.1

    config.optimizer.kind = "adafactor"  # section 5 of the paper
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 10_000
    config.optimizer.decay = "cosine"
    config.optimizer.frozen = ("^image_tower/",)  # computed without gradients
    config.loss.label_smoothing = 0.0
    config.loss.reduction = "mean"
    return config
