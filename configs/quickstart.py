"""Pretrains a small dual encoder on drawings of emoji and their English names.

    make quickstart

or, once `make data` has been run,

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart

Hardware: 2 CPU cores, 7 minutes.
Expected: recall@5 of 0.35 on unseen drawings (chance 0.004) and of 0.21 on unseen
concepts (chance 0.025); docs/first_hour.md has the whole table.
"""

from ml_collections import ConfigDict

RECORDS = "runs/quickstart_corpus/records"
EVALUATION = "runs/quickstart_data/evaluation"


def get_config() -> ConfigDict:
    """Returns the run's config, one line a field."""
    config = ConfigDict()
    config.run = "pretrain"
    config.seed = 0
    config.total_steps = 1700
    config.virtual_cores = 8  # the paper has 1024
    config.pairs_per_core = 16  # as in the paper; 128 pairs a step
    config.batch_norm_cores = 8  # groups of 16 are too noisy for so short a run
    config.microbatches = 1  # parts that the batch is computed in, see docs/pods.md
    config.fsdp = 1  # devices that share a state; neither field changes the result
    config.vocabulary = f"{RECORDS}/vocabulary.txt"

    config.input = ConfigDict()
    config.input.datasets = ConfigDict()
    config.input.datasets.emoji = ConfigDict()
    config.input.datasets.emoji.directory = RECORDS
    config.input.streams = 8
    config.input.shuffle_window = 1024  # larger than a shard: all of it is permuted
    config.input.preprocess = ConfigDict()
    config.input.preprocess.resize = 36  # pixels; evaluation crops the centre
    config.input.preprocess.image_size = 32
    config.input.preprocess.crop = "inception"  # drawings differ in size and position
    config.input.preprocess.crop_area = 0.65
    config.input.preprocess.colour_jitter = 0.4  # each style has other colours
    config.input.preprocess.flip = True  # as in the paper, although arrows turn round
    config.input.preprocess.random_background = False

    config.model = ConfigDict()
    config.model.image_tower = ConfigDict()
    config.model.image_tower.width = 0.75
    config.model.image_tower.depth = 0.3
    config.model.image_tower.drop_rate = 0.0  # a short run of a small tower underfits
    config.model.image_tower.batch_norm_momentum = 0.97  # 0.99 lags in a short run
    config.model.text_tower = ConfigDict()
    config.model.text_tower.vocabulary_size = 4096  # rows; the vocabulary has fewer
    config.model.text_tower.max_tokens = 8  # names are short; the paper has 64
    config.model.text_tower.positions = 12
    config.model.text_tower.layers = 2
    config.model.text_tower.hidden = 128
    config.model.text_tower.dropout = 0.0  # small towers underfit here
    config.model.text_tower.init_std = 0.08  # 0.02 fits a width of 768
    config.model.temperature_init = 0.2  # 1.0 takes thousands of steps to fall
    config.model.dtype = "float32"

    config.optimizer = ConfigDict()
    config.optimizer.kind = "muon"
    config.optimizer.learning_rate = 2.4e-3
    steps = config.get_ref("total_steps")  # follows a flag that changes it
    config.optimizer.warmup_steps = steps // 50
    config.optimizer.decay = "constant"
    config.optimizer.cooldown_steps = steps // 5
    config.optimizer.weight_decay = 1e-5  # as in the paper
    config.optimizer.b2 = 0.98  # 0.999 remembers more steps than the run has
    config.optimizer.average_decay = 0.99  # evaluation uses the moving average

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1  # as in the paper
    config.loss.temperature_floor = 0.01

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 2
    config.log_every_steps = 25
    config.profile_steps = ()  # for example (11, 15), to WORKDIR/profile
    config.evaluate_every_steps = 300

    config.evaluators = ConfigDict()
    for split in ("unseen_drawing", "unseen_concept"):
        config.evaluators[split] = ConfigDict()
        config.evaluators[split].kind = "retrieval"
        config.evaluators[split].directory = EVALUATION
        config.evaluators[split].split = split
        config.evaluators[split].merge_texts = True  # concepts share names
    config.evaluators.category = ConfigDict()
    config.evaluators.category.kind = "zero_shot"
    config.evaluators.category.directory = EVALUATION
    config.evaluators.category.split = "unseen_concept"
    config.evaluators.category.prompts = f"{EVALUATION}/categories.json"
    return config
