"""Pretrains EfficientNet-L2 and BERT-Large as the paper (arXiv 2102.05918, section 5).

    python main.py --config=configs/pretrain_align_l2_large.py --workdir=DIR \
        --config.input.datasets.corpus.directory=gs://BUCKET/corpus/records \
        --config.vocabulary=gs://BUCKET/corpus/records/vocabulary.txt

Hardware: v3:16x32, 1024 TPU v3 cores, as the paper; docs/plans.md has a core's needs.
Expected, from the paper on 1.8 billion pairs: zero-shot recall@1 on MSCOCO of 58.6 and
45.6 (text and image retrieval), on Flickr30k of 88.6 and 75.7. Not run here.
"""

from ml_collections import ConfigDict

from configs import pretrain_align_b7_base


def get_config() -> ConfigDict:
    """Returns the run of B7 and Base with larger towers and a split state."""
    config = pretrain_align_b7_base.get_config()
    config.model.image_tower.width = 4.3
    config.model.image_tower.depth = 5.3
    config.model.text_tower.layers = 24
    config.model.text_tower.hidden = 1024
    config.fsdp = 8  # 10 GiB of parameters and moments do not fit on a core
    return config
