"""Class names and prompt templates, from files with their sources."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from align_jax import places
from align_jax.errors import InputError

FOLDER = pathlib.Path(__file__).with_name("prompt_sets")
SUBSETS = FOLDER / "imagenet_subsets.json"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What classes are called.

    Attributes:
      classes: (K) names of the classes, in the labels' order.
      phrases: (K) lists of what each class is called within a template.
      templates: sentences with a {} for the phrase.
    """

    classes: list[str]
    phrases: list[list[str]]
    templates: list[str]

    def fill(self, templates: Sequence[str]) -> list[list[str]]:
        """(K) lists of a class's prompts by some templates."""
        return [
            [t.format(p) for p in phrases for t in templates]
            for phrases in self.phrases
        ]


def read_prompts(source: str, label_names: Sequence[str] | None) -> Prompts:
    """Reads a set of prompts.

    Args:
      source: a set that is shipped, as "imagenet" or "cifar", or the path of a JSON
        file {"templates": ["a picture of {}"]} with "classes": [name, ...], or with
        "categories": [{"name": ..., "prompts": [phrase, ...]}, ...] for classes of
        several phrases; without either, the dataset's own names are taken.
      label_names: those of the dataset, in the labels' order; None where it has none.

    Raises:
      InputError: there is no such file, it is damaged, or it has not a class a label.
    """
    shipped = FOLDER / f"{source}.json"
    is_shipped = shipped.exists() and shipped != SUBSETS
    path = str(shipped) if is_shipped else places.resolve(source)
    if not places.exists(path):
        known = sorted(p.stem for p in FOLDER.glob("*.json") if p != SUBSETS)
        raise InputError(f"no prompts at {source}; shipped are {', '.join(known)}")
    found = places.read_json(path)
    templates = found.get("templates", [])
    if not templates or not all("{}" in template for template in templates):
        raise InputError(
            f"{path} has the templates {templates}; wanted some with a {{}}"
        )
    if "categories" in found:
        categories = found["categories"]
        names = [category["name"] for category in categories]
        phrases = [category["prompts"] for category in categories]
    else:
        names = found.get("classes") or [
            name.replace("_", " ") for name in label_names or ()
        ]
        phrases = [[name] for name in names]
    if not names:
        raise InputError(
            f"{path} has no classes, and the dataset does not name its own"
        )
    if label_names is not None and len(label_names) != len(names):
        raise InputError(
            f"{path} describes {len(names)} classes, and the dataset has labels of"
            f" {len(label_names)}"
        )
    return Prompts(names, phrases, templates)


def read_subset(name: str) -> list[int]:
    """Labels of the ImageNet classes that "imagenet_a" or "imagenet_r" has."""
    subsets = json.loads(SUBSETS.read_text(encoding="utf-8"))
    known = [key for key in subsets if key != "source"]
    if name not in known:
        raise InputError(f"no classes {name!r}; known: {', '.join(known)}")
    return subsets[name]
