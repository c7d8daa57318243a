"""Linear probes and few-shot probes of an image tower, without training it.

    python main.py --config=configs/linear_probe.py:pets_probe,imagenet_few_shot \
        --workdir=runs/probes --config.checkpoint=DIR

Names after the colon choose among `PROBES`; without names all run. DIR is any source of
weights in docs/weights.md. The penalty of a linear probe is chosen on a validation
split; if a dataset has none, this is the last tenth of its training split. The datasets
are those of TFDS; docs/evaluation_sets.md says how to prepare them.

Hardware: any.
Expected: no published numbers of ALIGN follow this protocol. Not run here.
"""

from ml_collections import ConfigDict

from configs import zero_shot
from configs.zero_shot import TFDS


def linear(name: str, split: str, pictures: int, validation: str = "") -> dict:
    """Returns the fields of a linear probe on a TFDS dataset."""
    parts = ("train", validation) if validation else ("train[:90%]", "train[90%:]")
    return {
        "kind": "linear_probe",
        "directory": f"{TFDS}/{name}",
        "train": parts[0],
        "validation": parts[1],
        "split": split,
        "expected_pictures": pictures,
    }


PROBES = {
    "imagenet_probe": linear("imagenet2012", "validation", 50_000),
    "cifar10_probe": linear("cifar10", "test", 10_000),
    "cifar100_probe": linear("cifar100", "test", 10_000),
    "food101_probe": linear("food101", "validation", 25_250),
    "pets_probe": linear("oxford_iiit_pet", "test", 3_669),
    "flowers_probe": linear("oxford_flowers102", "test", 6_149, "validation"),
    "cars_probe": linear("cars196", "test", 8_041),
    "imagenet_few_shot": {
        "kind": "few_shot",
        "directory": f"{TFDS}/imagenet2012",
        "split": "validation",
        "expected_pictures": 50_000,
    },
}


def get_config(names: str = "") -> ConfigDict:
    """Returns the probes of some names, joined by commas; without names all of them."""
    return zero_shot.choose(names, PROBES)
