"""Trains an ImageNet classifier on an image tower, frozen or fine-tuned (Table 5).

    python main.py --config=configs/finetune_imagenet.py:frozen --workdir=DIR \
        --config.initialize.image_tower=RUN

RUN is a pretraining run or any other source of an image tower of this size. `full`
instead of `frozen` trains the tower too. A tower of another size needs its fields: for
B7, --config.model.image_tower.width=2.0 --config.model.image_tower.depth=3.1.

Hardware: 64 virtual cores of 16 pictures on any slice that holds them.
Expected, from the paper (arXiv 2102.05918) with the paper's L2 tower: top-1 of 85.5
frozen, of 88.64 fine-tuned (top-5 98.67). Not run here.
"""

from ml_collections import ConfigDict

from configs.zero_shot import TFDS

IMAGENET = f"{TFDS}/imagenet2012"
EPOCH = 1_251  # steps: 1,281,167 pictures in batches of 1,024
STAGES = {  # pixels of training and evaluation, learning rate
    "frozen": (289, 360, 0.1),
    "full": (475, 600, 0.01),
}


def get_config(stage: str = "frozen") -> ConfigDict:
    """Returns the run's config, one line a field."""
    if stage not in STAGES:
        raise ValueError(f"no stage {stage!r}; known: {', '.join(STAGES)}")
    train_size, test_size, learning_rate = STAGES[stage]
    config = ConfigDict()
    config.run = "classify"
    config.seed = 0
    config.total_steps = 100 * EPOCH
    config.virtual_cores = 64
    config.pairs_per_core = 16  # 1,024 pictures a step
    config.batch_norm_cores = 1
    config.microbatches = 1
    config.fsdp = 1
    config.initialize = ConfigDict()
    config.initialize.image_tower = ""  # required

    config.input = ConfigDict()
    config.input.datasets = ConfigDict()
    config.input.datasets.imagenet = ConfigDict()
    config.input.datasets.imagenet.directory = IMAGENET
    config.input.datasets.imagenet.label_feature = "label"
    config.input.streams = 64
    config.input.preprocess = ConfigDict()
    config.input.preprocess.resize = train_size
    config.input.preprocess.image_size = train_size
    config.input.preprocess.crop = "inception"
    config.evaluation = ConfigDict()  # the central 0.875 of the picture
    config.evaluation.resize = round(test_size / 0.875)
    config.evaluation.image_size = test_size

    config.model = ConfigDict()
    config.model.image_tower = ConfigDict()
    config.model.image_tower.width = 4.3
    config.model.image_tower.depth = 5.3
    config.model.image_tower.scan = True  # one body a stage, which compiles faster
    config.model.image_tower.rematerialise = "blocks"
    config.model.classes = 1000
    config.model.dtype = "bfloat16"

    config.optimizer = ConfigDict()
    config.optimizer.kind = "sgd"
    config.optimizer.b1 = 0.9  # momentum
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup_steps = 0
    config.optimizer.decay = "staircase"
    config.optimizer.staircase_steps = 30 * EPOCH
    config.optimizer.staircase_factor = 0.2
    config.optimizer.weight_decay = 0.0
    if stage == "frozen":
        config.optimizer.frozen = ("^image_tower/",)
        config.model.image_tower.frozen_statistics = True
        config.model.image_tower.drop_rate = 0.0  # frozen features stay deterministic
    else:
        config.optimizer.rate_factors = (("^image_tower/", 0.1),)

    config.loss = ConfigDict()
    config.loss.kind = "cross_entropy"
    config.loss.label_smoothing = 0.0

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = EPOCH
    config.log_every_steps = 50
    config.evaluate_every_steps = 5 * EPOCH
    config.evaluators = ConfigDict()
    config.evaluators[f"imagenet_{stage}"] = {
        "kind": "classification",
        "directory": IMAGENET,
        "split": "validation",
        "expected_pictures": 50_000,
    }
    return config
