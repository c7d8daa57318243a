"""Tunes a published CLIP or SigLIP, or any other dual encoder, on your own pairs.

    python main.py --config=configs/tune_published.py:FOLDER --workdir=runs/tuned \
        --config.input.datasets.pairs.directory=RECORDS

FOLDER is anything that `align_jax.load` reads. Model, preprocessing and tokenizer are
the folder's. docs/tuning.md says what to choose and what to watch.

Hardware: 32 virtual cores of 16 pairs on any slice that holds them.
Expected: scores above those of step 0, which are the published model's. Not run with
published weights here; docs/tuning.md has a run of a small model.
"""

from ml_collections import ConfigDict

from align_jax.weights.starts import describe_start

STEPS = 2_000


def get_config(source: str = "") -> ConfigDict:
    """Returns the run that starts from the model in a folder."""
    start = describe_start(source)
    config = ConfigDict()
    config.run = "pretrain"
    config.seed = 0
    config.total_steps = STEPS  # a few epochs: 2,000 steps see a million pairs
    config.virtual_cores = 32
    config.pairs_per_core = 16  # 512 pairs a step
    config.batch_norm_cores = 32
    config.microbatches = 1  # more for less memory; the result is the same
    config.fsdp = 1
    config.vocabulary = start.vocabulary
    config.initialize = ConfigDict()
    config.initialize.model = source

    config.input = ConfigDict()
    config.input.datasets = ConfigDict()
    config.input.datasets.pairs = ConfigDict()
    config.input.datasets.pairs.directory = "corpus/records"
    config.input.streams = 32
    config.input.preprocess = ConfigDict(start.preprocess)
    config.input.preprocess.crop = "inception"
    config.input.preprocess.crop_area = 0.9  # nearly the whole picture
    config.input.preprocess.flip = False  # texts say left and right

    config.model = ConfigDict(start.model)

    config.optimizer = ConfigDict()
    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = 1e-5  # a hundredth of pretraining's
    config.optimizer.warmup_steps = STEPS // 10
    config.optimizer.decay = "cosine"
    config.optimizer.weight_decay = 0.1  # times the rate: 1e-6 a step
    config.optimizer.b2 = 0.98
    config.optimizer.clip_norm = 1.0
    config.optimizer.frozen = ("temperature$",)  # its value is that of large batches
    config.optimizer.rate_factors = ()  # as (("^image_tower/", 0.1),)

    sigmoid = start.model["logit_bias_init"] is not None
    config.loss = ConfigDict()
    config.loss.kind = "sigmoid" if sigmoid else "softmax"
    config.loss.label_smoothing = 0.0
    config.loss.reduction = "sum" if sigmoid else "mean"  # CLIP: mean

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 200
    config.checkpoint.keep = 2
    config.log_every_steps = 10
    config.evaluate_every_steps = 200  # and before step 1
    config.evaluators = ConfigDict()  # add your own pairs, and a task to keep
    return config
