"""The base config of the bench of recipes, and the recipes that it compares.

    make recipes

or, once `make recipes-data` has been run,

    python -m benchmarks.recipes --workdir=runs/recipes

A recipe changes fields of `configs/quickstart_paper.py`, given the number of its steps.
It has a range for each setting that is searched; all recipes get the same number of
trials. Operations decide how many steps a recipe has, see `benchmarks.recipes`.

Hardware: 2 CPU cores; a run of all operations takes about 10 minutes.
Expected: docs/recipes.md has what was measured.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs import quickstart_paper

RECORDS = "runs/recipes_corpus/records"
EVALUATION = "runs/recipes_data/evaluation"
PARTS = ("unseen_drawing", "unseen_concept", "clipart")

Changes = dict[str, Any]  # values by dotted path of the field


def get_config() -> ConfigDict:
    """Returns the baseline's config on the data of the bench."""
    config = quickstart_paper.get_config()
    config.vocabulary = f"{RECORDS}/vocabulary.txt"
    config.input.datasets = ConfigDict()
    config.input.datasets.recipes = ConfigDict()
    config.input.datasets.recipes.directory = RECORDS
    config.evaluate_every_steps = config.total_steps  # at the start and at the end
    config.evaluators = ConfigDict()
    config.evaluators.choose = ConfigDict()
    config.evaluators.choose.kind = "retrieval"
    config.evaluators.choose.directory = EVALUATION
    config.evaluators.choose.split = "+".join(f"choose_{part}" for part in PARTS)
    config.evaluators.choose.merge_texts = True  # drawings share titles
    return config


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A way to train the same towers.

    Attributes:
      about: description for the page, a short phrase.
      change: function from the number of steps to the changed fields.
      space: searched fields and their ranges, as in `SearchConfig.space`.
    """

    about: str
    change: Callable[[int], Changes]
    space: tuple[tuple, ...]


def _baseline(steps: int) -> Changes:
    return {}


def _small_pictures(steps: int) -> Changes:
    return {"input.preprocess.image_size": 24, "input.preprocess.resize": 27}


def _short_texts(steps: int) -> Changes:
    return {"model.text_tower.max_tokens": 8}


def _small_batch(steps: int) -> Changes:
    # BatchNorm sees the whole batch, as in the base config.
    return {"virtual_cores": 4, "batch_norm_cores": 4}


def _cosine(steps: int) -> Changes:
    return {"optimizer.decay": "cosine"}


def _adamw(steps: int) -> Changes:
    # The base config slows down the text tower against LAMB's trust ratio.
    return {"optimizer.kind": "adamw", "optimizer.rate_factors": ()}


def _growing_pictures(steps: int) -> Changes:
    return {"phases": ((0, {"image_size": 24}), (int(0.8 * steps), {}))}


def _growing_texts(steps: int) -> Changes:
    return {"phases": ((0, {"max_tokens": 8}), (int(0.8 * steps), {}))}


def _growing(steps: int) -> Changes:
    small = {"image_size": 24, "max_tokens": 8}
    return {"phases": ((0, small), (int(0.8 * steps), {}))}


def _cooldown(steps: int) -> Changes:
    cooldown = max(1, steps // 5)
    return {"optimizer.decay": "constant", "optimizer.cooldown_steps": cooldown}


def _muon(steps: int) -> Changes:
    return {"optimizer.kind": "muon", "optimizer.rate_factors": ()}


def _schedule_free(steps: int) -> Changes:
    return {
        "optimizer.kind": "schedule_free_adamw",
        "optimizer.decay": "constant",
        "optimizer.average_decay": None,
        "optimizer.rate_factors": (),
    }


def _light(steps: int) -> Changes:
    # A short run underfits with the augmentation of a long one.
    return {
        "input.preprocess.crop_area": 0.65,
        "input.preprocess.colour_jitter": 0.4,
        "model.image_tower.drop_rate": 0.0,
    }


def _combined(steps: int) -> Changes:
    return _short_texts(steps) | _light(steps)


def _muon_short_texts(steps: int) -> Changes:
    return _muon(steps) | _short_texts(steps)


def _combined_muon(steps: int) -> Changes:
    return _combined(steps) | _muon(steps)


def _unflipped(steps: int) -> Changes:
    # Names tell left from right: "left arrow".
    return _combined_muon(steps) | {"input.preprocess.flip": False}


def _unflipped_cooldown(steps: int) -> Changes:
    return _unflipped(steps) | _cooldown(steps)


def rates(lowest: float, highest: float) -> tuple[tuple, ...]:
    """Returns the space of a search over the learning rate alone."""
    return (("optimizer.learning_rate", "log", lowest, highest),)


# Every range is a factor of 4. The trials lie at the same points of all ranges.
RECIPES = {
    "baseline": Recipe("quickstart_paper.py", _baseline, rates(2e-3, 8e-3)),
    "small_pictures": Recipe("24 pixels, not 32", _small_pictures, rates(2e-3, 8e-3)),
    "short_texts": Recipe("8 tokens, not 12", _short_texts, rates(2e-3, 8e-3)),
    "small_batch": Recipe("64 pairs, not 128", _small_batch, rates(1.4e-3, 5.6e-3)),
    "cosine": Recipe("cosine decay, not linear", _cosine, rates(2e-3, 8e-3)),
    "adamw": Recipe("AdamW, not LAMB", _adamw, rates(1e-3, 4e-3)),
    "growing_pictures": Recipe(
        "24 pixels, 32 in the last fifth", _growing_pictures, rates(2e-3, 8e-3)
    ),
    "growing_texts": Recipe(
        "8 tokens, 12 in the last fifth", _growing_texts, rates(2e-3, 8e-3)
    ),
    "growing": Recipe(
        "24 pixels and 8 tokens, 32 and 12 in the last fifth",
        _growing,
        rates(2e-3, 8e-3),
    ),
    "cooldown": Recipe(
        "a constant rate that falls in the last fifth", _cooldown, rates(2e-3, 8e-3)
    ),
    "light": Recipe("less augmentation, no depth dropped", _light, rates(2e-3, 8e-3)),
    "combined": Recipe(
        "8 tokens, less augmentation, no depth dropped", _combined, rates(2e-3, 8e-3)
    ),
    "muon": Recipe("Muon and AdamW, not LAMB", _muon, rates(1e-3, 4e-3)),
    "muon_short_texts": Recipe(
        "Muon, 8 tokens, not 12", _muon_short_texts, rates(1e-3, 4e-3)
    ),
    "combined_muon": Recipe("combined, with Muon", _combined_muon, rates(1e-3, 4e-3)),
    "unflipped": Recipe("combined_muon, without flips", _unflipped, rates(1e-3, 4e-3)),
    "unflipped_cooldown": Recipe(
        "unflipped, with cooldown's rate", _unflipped_cooldown, rates(1e-3, 4e-3)
    ),
    "schedule_free": Recipe(
        "schedule-free AdamW, not LAMB", _schedule_free, rates(1e-3, 4e-3)
    ),
}
