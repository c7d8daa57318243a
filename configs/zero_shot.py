"""Evaluates a trained dual encoder as the paper does, without training on the datasets.

    python main.py --config=configs/zero_shot.py:imagenet,coco --workdir=runs/scores \
        --config.checkpoint=DIR

Names after the colon choose among `EVALUATIONS`, the paper's, and `BEYOND`; without
names the paper's run. `datacomp` instead evaluates those of DataComp's 38 sets that lie
in `config.datacomp.directory`. DIR is any model that `align_jax.load` reads, such as a
run's workdir or a Hugging Face folder. docs/evaluation_sets.md and docs/benchmarks.md
say how to prepare each dataset, and `--config.evaluators.NAME.directory` changes its
path.

Hardware: any.
Expected: the printed table has published numbers beside the scores.
"""

from ml_collections import ConfigDict

TFDS = "~/tensorflow_datasets"
SINGLE = "a photo of {}."  # the prompt of align-base's published accuracy


def classification(name: str, split: str, pictures: int, prompts: str, **more) -> dict:
    """Returns the fields of a zero-shot classification of a TFDS dataset."""
    return {
        "kind": "zero_shot",
        "directory": f"{TFDS}/{name}",
        "split": split,
        "prompts": prompts,
        "expected_pictures": pictures,
        "attack": False,  # True: also score pictures with the name of a wrong class
        **more,
    }


def retrieval(name: str, images: int, texts: int, feature: str = "texts") -> dict:
    """Returns the fields of retrieval on a set that `data.eval_sets` wrote."""
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


def selection(name: str, instances: int, format: str) -> dict:
    """Returns the fields of a selection of captions or pictures."""
    return {
        "kind": "selection",
        "directory": name,
        "format": format,
        "expected": instances,
    }


def datacomp_set(name: str, pictures: int, classes: int) -> dict:
    """Returns the fields of one of DataComp's sets, which can also be all evaluated."""
    return {
        "kind": "wds",
        "directory": f"evaluation/datacomp/{name}",
        "expected": pictures,
        "expected_classes": classes,
    }


def translated(language: str) -> dict:
    """Returns the fields of ImageNet with the names and prompts of a language."""
    prompts = "downloads/CLIP_benchmark/clip_benchmark/datasets"
    return classification(
        "imagenet2012", "validation", 50_000, f"{prompts}/{language}_classnames.json"
    )


# Sets that the paper does not have.
BEYOND = {
    "sugar_crepe": {
        "kind": "selection",
        "directory": "downloads/sugar-crepe/data",
        "format": "sugar_crepe",
        "pictures": "downloads/val2017",
        "expected": 7_511,
    },
    "winoground": selection("evaluation/winoground", 400, "winoground"),
    "aro_relation": selection("downloads/aro", 23_937, "aro_relation"),
    "aro_attribution": selection("downloads/aro", 28_748, "aro_attribution"),
    "aro_coco_order": selection("evaluation/ARO-COCO-order", 25_010, "aro_order"),
    "aro_flickr_order": selection("evaluation/ARO-Flickr-Order", 5_000, "aro_order"),
    "docci": retrieval("docci", 5_000, 5_000),
    "urban1k": retrieval("urban1k", 1_000, 1_000),
    "xm3600": {
        "kind": "languages",
        "directory": "downloads/xm3600",
        "expected_images": 3_600,
    },
    "xtd10": {
        "kind": "languages",
        "directory": "downloads/Cross-lingual-Test-Dataset-XTD10",
        "format": "xtd",
        "pictures": "downloads",
        "languages": ("en", "de", "es", "fr", "it", "jp", "ko", "pl", "ru", "tr", "zh"),
        "expected_images": 1_000,
    },
    "imagenet_ar": translated("ar"),
    "imagenet_it": translated("it"),
    "imagenet_jp": translated("jp"),
    "imagenet_zh": translated("cn"),
    "imagenet_sketch": datacomp_set("wds_imagenet_sketch_test", 50_889, 1_000),
    "objectnet": datacomp_set("wds_objectnet_test", 18_574, 113),
}


def get_config(names: str = "") -> ConfigDict:
    """Returns the evaluations of some names, joined by commas; without, the paper's."""
    if names != "datacomp":
        return choose(names, EVALUATIONS | BEYOND if names else EVALUATIONS)
    config = choose("", {})
    config.datacomp = ConfigDict()
    config.datacomp.directory = "evaluation/datacomp"  # holds wds_cifar10_test, ...
    config.datacomp.check_sizes = True  # every set has its published size
    config.datacomp.model = ""  # columns of open_clip's table: the name,
    config.datacomp.pretrained = ""  # and the training data
    return config


def choose(names: str, known: dict[str, dict]) -> ConfigDict:
    """Returns a config of some of the known evaluations, or of all."""
    chosen = names.split(",") if names else [*known]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"no evaluation {unknown[0]!r}; known: {', '.join(known)}")
    config = ConfigDict()
    config.run = "evaluate"
    config.checkpoint = ""  # required
    config.embeddings = ""  # folder that keeps embeddings for the next evaluation
    config.evaluators = {name: known[name] for name in chosen}
    return config
