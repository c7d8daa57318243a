"""Pretrains EfficientNet-B7 and BERT-Base (arXiv 2102.05918, section 6).

    python main.py --config=configs/pretrain_align_b7_base.py --workdir=DIR \
        --config.input.datasets.corpus.directory=gs://BUCKET/corpus/records \
        --config.vocabulary=gs://BUCKET/corpus/records/vocabulary.txt

The towers have the size of the open ALIGN (kakaobrain/align-base).

Hardware: 1024 virtual cores of 16 pairs on any slice that holds them; docs/plans.md has
the needs on v5e:16x16 and, with --config.microbatches=2, on v6e:8x8.
Expected, from the paper on 1.8 billion pairs after a million steps: 55.4 and 41.7
recall@1 on MSCOCO (text and image retrieval) and 69.3 on ImageNet nearest neighbours.
Not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the run's config, one line a field."""
    config = ConfigDict()
    config.run = "pretrain"
    config.seed = 0
    config.total_steps = 1_200_000
    config.virtual_cores = 1024  # TPU v3 cores of the paper
    config.pairs_per_core = 16
    config.batch_norm_cores = 1  # groups of 16 pictures, as in the open reproduction
    config.microbatches = 1
    config.fsdp = 1
    config.vocabulary = "corpus/records/vocabulary.txt"  # 100,000 word pieces

    config.input = ConfigDict()
    config.input.datasets = ConfigDict()
    config.input.datasets.corpus = ConfigDict()
    config.input.datasets.corpus.directory = "corpus/records"
    config.input.streams = 1024  # a multiple of 1, 2, 4, ..., 1024 hosts
    config.input.shuffle_window = 64  # records are in random order already
    config.input.preprocess = ConfigDict()
    config.input.preprocess.resize = 346
    config.input.preprocess.image_size = 289

    config.model = ConfigDict()
    config.model.image_tower = ConfigDict()
    config.model.image_tower.width = 2.0
    config.model.image_tower.depth = 3.1
    config.model.image_tower.scan = True  # one body a stage, which compiles faster
    config.model.image_tower.rematerialise = "blocks"
    config.model.image_tower.kernels = "auto"  # on TPU v5e and v6e also "mosaic"
    config.model.text_tower = ConfigDict()
    config.model.text_tower.vocabulary_size = 100_000
    config.model.text_tower.layers = 12
    config.model.text_tower.hidden = 768
    config.model.text_tower.scan = True
    config.model.text_tower.rematerialise = True
    config.model.dtype = "bfloat16"

    config.optimizer = ConfigDict()
    config.optimizer.kind = "lamb"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 10_000
    config.optimizer.weight_decay = 1e-5

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep = 3
    config.checkpoint.local_folder = ""  # on each host, for example /dev/shm/align
    config.checkpoint.local_every_steps = 100
    config.log_every_steps = 50
    config.profile_steps = ()  # for example (1000, 1005), to WORKDIR/profile
    config.profile_process = 0  # the process that traces them
    config.hang_seconds = 300  # without a step, until the processes that lag are named
    config.evaluate_every_steps = 10_000
    config.evaluators = ConfigDict()
    return config
