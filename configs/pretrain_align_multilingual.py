"""Pretrains ALIGN in over 100 languages (arXiv 2102.05918, section 8).

    python main.py --config=configs/pretrain_align_multilingual.py --workdir=DIR \
        --config.input.datasets.corpus.directory=gs://BUCKET/corpus/records \
        --config.vocabulary=gs://BUCKET/corpus/records/vocabulary.txt

The corpus is built without the rule for languages and with `vocabulary_size = 250_000`
word pieces (docs/corpus.md). All other fields are those of the paper's English run.

Hardware: v3:16x32, 1024 TPU v3 cores, as pretrain_align_l2_large.py.
Expected, from the paper on 1.8 billion pairs: mean recall on Multi30K of 90.2 (en),
84.1 (de), 84.9 (fr), 63.2 (cs). Not run here.
"""

from ml_collections import ConfigDict

from configs import pretrain_align_l2_large


def get_config() -> ConfigDict:
    """Returns the run of L2 and Large with a larger vocabulary."""
    config = pretrain_align_l2_large.get_config()
    config.model.text_tower.vocabulary_size = 250_000
    return config
