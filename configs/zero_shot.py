"""Evaluates a trained dual encoder as the paper does, without training on the sets.

    python main.py --config=configs/zero_shot.py:imagenet,coco --workdir=runs/scores \
        --config.checkpoint=DIR

Names after the colon choose among `EVALUATIONS`; without them all run. DIR is whatever
`align_jax.load` reads: a run's workdir, a Hugging Face folder. docs/evaluation_sets.md
says how each dataset comes to its place, which `--config.evaluators.NAME.directory`
changes.

Hardware: any.
Expected: see the table's columns of published numbers.
"""

from ml_collections import ConfigDict

TFDS = "~/tensorflow_datasets"
SINGLE = "a photo of {}."  # of which align-base's accuracy is known


def classification(name: str, split: str, pictures: int, prompts: str, **more) -> dict:
    """Classification of a TFDS dataset, whose count of pictures is checked."""
    return {
        "kind": "zero_shot",
        "directory": f"{TFDS}/{name}",
        "split": split,
        "prompts": prompts,
        "expected_pictures": pictures,
        **more,
    }


def retrieval(name: str, images: int, texts: int, feature: str = "texts") -> dict:
    """Retrieval of a set that `python -m data.eval_sets` wrote."""
    return {
        "kind": "retrieval",
        "directory": f"evaluation/{name}",
        "split": "test",
        "texts_feature": feature,
        "expected_images": images,
        "expected_texts": texts,
    }


IMAGENET = {"prompts": "imagenet", "single": SINGLE}
EVALUATIONS = {
    "imagenet": classification("imagenet2012", "validation", 50_000, **IMAGENET),
    "imagenet_v2": classification(
        "imagenet_v2/matched-frequency", "test", 10_000, **IMAGENET
    ),
    "imagenet_r": classification(
        "imagenet_r", "test", 30_000, classes="imagenet_r", **IMAGENET
    ),
    "imagenet_a": classification(
        "imagenet_a", "test", 7_500, classes="imagenet_a", **IMAGENET
    ),
    "cifar10": classification("cifar10", "test", 10_000, "cifar"),
    "cifar100": classification("cifar100", "test", 10_000, "cifar"),
    "food101": classification("food101", "validation", 25_250, "food101"),
    "pets": classification("oxford_iiit_pet", "test", 3_669, "oxford_iiit_pet"),
    "flowers": classification("oxford_flowers102", "test", 6_149, "oxford_flowers102"),
    "cars": classification("cars196", "test", 8_041, "cars196"),
    "flickr30k": retrieval("flickr30k", 1_000, 5_000),
    "coco": retrieval("coco", 5_000, 25_010),
    "multi30k_en": retrieval("multi30k", 1_000, 5_000, "texts_en"),
    "multi30k_de": retrieval("multi30k", 1_000, 5_000, "texts_de"),
    "multi30k_fr": retrieval("multi30k", 1_000, 1_000, "texts_fr"),
    "multi30k_cs": retrieval("multi30k", 1_000, 1_000, "texts_cs"),
    "crisscrossed": {
        "kind": "crisscrossed",
        "directory": "evaluation/coco",
        "ratings": "downloads/Crisscrossed-Captions/data",
    },
    "neighbours": {
        "kind": "neighbours",
        "directory": f"{TFDS}/imagenet2012",
        "expected_queries": 50_000,
        "expected_index": 1_281_167,
    },
    "simlex": {"kind": "word_similarity", "path": "downloads/SimLex-999.txt"},
}


def get_config(names: str = "") -> ConfigDict:
    """The evaluations of some names, joined by commas; all without any."""
    return choose(names, EVALUATIONS)


def choose(names: str, known: dict[str, dict]) -> ConfigDict:
    """Some of the known evaluations, or all."""
    chosen = names.split(",") if names else [*known]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"no evaluation {unknown[0]!r}; known: {', '.join(known)}")
    config = ConfigDict()
    config.run = "evaluate"
    config.checkpoint = ""  # to be given
    config.embeddings = ""  # a folder to keep them in, for the next evaluation
    config.evaluators = {name: known[name] for name in chosen}
    return config
