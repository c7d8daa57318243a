"""Fine-tunes a dual encoder on Flickr30k or MSCOCO for retrieval (Table 1).

    python main.py --config=configs/finetune_retrieval.py:coco --workdir=runs/coco \
        --config.initialize.model=RUN --config.vocabulary=VOCABULARY

RUN is a pretraining run of the model's size, VOCABULARY the vocabulary of that run.
Other sizes are set by --config.model..., as in pretraining. docs/evaluation_sets.md
says how to prepare the data.

Hardware: 128 virtual cores of 16 pairs on any slice that holds them.
Expected, from the paper (arXiv 2102.05918) with the paper's L2 and Large: recall@1 of
95.3 and 84.9 (text and image retrieval) on Flickr30k, of 77.0 and 59.9 on MSCOCO. Not
run here.
"""

from ml_collections import ConfigDict

from configs import pretrain_align_l2_large, zero_shot

# Number of steps, and splits to train on.
DATASETS = {"flickr30k": (3_000, ("train",)), "coco": (6_000, ("train", "restval"))}


def get_config(name: str = "coco") -> ConfigDict:
    """Returns the run of a dataset: that of pretraining with the changes below."""
    if name not in DATASETS:
        raise ValueError(f"no dataset {name!r}; known: {', '.join(DATASETS)}")
    steps, splits = DATASETS[name]
    config = pretrain_align_l2_large.get_config()
    config.total_steps = steps
    config.virtual_cores = 128  # 2,048 pairs: a large batch has false negatives
    config.initialize = ConfigDict()
    config.initialize.model = ""  # required

    config.input.datasets = ConfigDict()
    for split in splits:
        config.input.datasets[split] = ConfigDict()
        config.input.datasets[split].directory = f"evaluation/{name}_train"
        config.input.datasets[split].split = split
        config.input.datasets[split].text_feature = "texts"
    config.input.streams = 128

    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = "linear"

    config.checkpoint.every_steps = 500
    config.evaluate_every_steps = 1000
    config.evaluators = {f"{name}_tuned": zero_shot.EVALUATIONS[name]}
    return config
