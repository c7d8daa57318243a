"""Pretrains EfficientNet-B3 and BERT-Mini on CC3M (arXiv 2102.05918, Table 9).

    python main.py --config=configs/pretrain_b3_mini_cc3m.py --workdir=DIR \
        --config.input.datasets.corpus.directory=CC3M/records \
        --config.vocabulary=CC3M/records/vocabulary.txt

`python -m data.build` writes the records from a download of CC3M, Conceptual Captions
(docs/corpus.md). The run has a tenth of the ablations' steps.

Hardware: 1024 virtual cores of 16 pairs on any slice that holds them.
Expected: recall@1 on MSCOCO of 22.1 (texts) and 17.3 (images), and 48.9 on ImageNet
neighbours in the paper; 21.2, 17.0 and 46.2 in the open reproduction
(kakaobrain/coyo-align, at a rate of 5e-3 with the 86 % of CC3M that were still online).
Not run here.
"""

from ml_collections import ConfigDict

from configs.sweeps import ablation

RECORDS = "cc3m/records"
VOCABULARY = f"{RECORDS}/vocabulary.txt"


def get_config() -> ConfigDict:
    """Returns the run: that of the ablations with the changes below."""
    config = ablation.get_config("b3", "mini")
    config.total_steps = 100_000
    config.evaluate_every_steps = 10_000
    config.input.datasets.corpus.directory = RECORDS
    config.vocabulary = VOCABULARY
    return config
