"""Classifies emoji with the quickstart's tower: probed, fine-tuned or from scratch.

    for how in probe tuned scratch; do
      python main.py --config=configs/quickstart_transfer.py:$how --workdir=runs/$how
    done

The labels are 21 categories (animals, tools, ...), which pretraining did not use.
Training uses 772 drawings of concepts that were in pretraining; the test uses 258
drawings of other concepts. `probe` fits a logistic regression, `tuned` and `scratch`
train a head and the whole tower.

Hardware: 2 CPU cores, under three minutes each.
Expected: top-1 of 0.52 (probe), 0.57 (tuned) and 0.28 (scratch) with the tower of
`configs/quickstart_paper.py`; the largest category has 0.16.
"""

from ml_collections import ConfigDict

from configs import quickstart

DATA = {"directory": quickstart.EVALUATION}
TRAIN, TEST = "unseen_drawing", "unseen_concept"


def get_config(how: str = "tuned") -> ConfigDict:
    """Returns the run of a name: probe, tuned or scratch."""
    if how not in ("probe", "tuned", "scratch"):
        raise ValueError(f"no run {how!r}; known: probe, tuned, scratch")
    config = ConfigDict()
    if how == "probe":
        config.run = "evaluate"
        config.checkpoint = "runs/quickstart"
        config.evaluators = {
            "category": {
                "kind": "linear_probe",
                "train": f"{TRAIN}[:80%]",
                "validation": f"{TRAIN}[80%:]",
                "split": TEST,
                **DATA,
            },
        }
        return config
    base = quickstart.get_config()
    config.run = "classify"
    config.seed = 0
    config.total_steps = 300
    config.virtual_cores = 8
    config.pairs_per_core = 16
    config.batch_norm_cores = 8
    if how == "tuned":
        config.initialize = ConfigDict()
        config.initialize.image_tower = "runs/quickstart"

    config.input = base.input
    config.input.max_replaced = 0.4  # 419 of the 1,191 drawings have no label
    config.input.datasets = {
        "emoji": {"split": TRAIN, "label_feature": "label", **DATA}
    }
    config.model = ConfigDict()
    config.model.image_tower = base.model.image_tower
    config.model.classes = 21

    config.optimizer = ConfigDict()
    config.optimizer.kind = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_steps = 20
    config.optimizer.decay = "cosine"
    if how == "tuned":
        config.optimizer.rate_factors = (("^image_tower/", 0.1),)
    config.loss = ConfigDict()
    config.loss.kind = "cross_entropy"
    config.loss.label_smoothing = 0.1

    config.checkpoint = base.checkpoint
    config.log_every_steps = 25
    config.evaluate_every_steps = 100
    config.evaluators = {"category": {"kind": "classification", "split": TEST, **DATA}}
    return config
