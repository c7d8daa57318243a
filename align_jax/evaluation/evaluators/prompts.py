"""Reads class names and prompt templates from JSON files.

The shipped files name their origin in the field "source".
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from align_jax import places
from align_jax.config import choose
from align_jax.errors import InputError
from align_jax.texts import check_template, check_text

FOLDER = pathlib.Path(__file__).with_name("prompt_sets")
SUBSETS = FOLDER / "imagenet_subsets.json"
# CLIP_benchmark's files: it_classnames.json and its like, {set: list of texts}.
CLASSES_ENDING = "_classnames.json"
TEMPLATES_ENDING = "_zeroshot_classification_templates.json"
IMAGENET = "imagenet1k"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The names of K classes, and templates for sentences about them.

    Attributes:
      classes: class names, in the order of the labels.
      phrases: K lists of phrases, one a class, to be put into the templates.
      templates: sentences with a {} for the phrase.
    """

    classes: list[str]
    phrases: list[list[str]]
    templates: list[str]

    def fill(self, templates: Sequence[str]) -> list[list[str]]:
        """Returns K lists: each class's phrases, each put into each of `templates`."""
        return [
            [t.format(p) for p in phrases for t in templates]
            for phrases in self.phrases
        ]


def read_prompts(source: str, label_names: Sequence[str] | None) -> Prompts:
    """Reads a set of prompts.

    Args:
      source: name of a shipped set, such as "imagenet" or "cifar", or the path of a
        JSON file {"templates": ["a picture of {}"]}. The file may have "classes":
        [name, ...], or "categories": [{"name": ..., "prompts": [phrase, ...]}, ...]
        for several phrases for a class. If the file has neither, `label_names` are
        used, with spaces for underscores; if it has both, "categories" is used. A path
        that ends with "_classnames.json" is one of CLIP_benchmark's files of ImageNet
        in a language, beside which its templates lie.
      label_names: class names of the dataset, in the order of the labels; None if it
        has none.

    Raises:
      InputError: the file is missing or damaged, has no templates or one that
        `check_template` refuses, has a name or phrase that is no text, has no classes
        while there are no `label_names`, or has another number of classes than the
        dataset.
    """
    shipped = FOLDER / f"{source}.json"
    is_shipped = shipped.exists() and shipped != SUBSETS
    path = str(shipped) if is_shipped else places.resolve(source)
    if not places.exists(path):
        known = sorted(p.stem for p in FOLDER.glob("*.json") if p != SUBSETS)
        raise InputError(f"no prompts at {source}; shipped are {', '.join(known)}")
    found = _read_file(path)
    templates = found.get("templates", [])
    if not _are_texts(templates) or not all("{}" in text for text in templates):
        raise InputError(
            f"{path} has the templates {templates}; wanted some with a {{}}"
        )
    for template in templates:
        check_template(template, path)
    if "categories" in found:
        categories = found["categories"]
        if not isinstance(categories, list) or not all(map(_is_category, categories)):
            raise InputError(
                f"{path} has categories of another form; wanted"
                ' {"name": TEXT, "prompts": [TEXT, ...]} for each'
            )
        names = [category["name"] for category in categories]
        phrases = [category["prompts"] for category in categories]
    else:
        names = found.get("classes") or [
            name.replace("_", " ") for name in label_names or ()
        ]
        if names and not _are_texts(names):
            raise InputError(f"{path} has the classes {names}; wanted a list of texts")
        phrases = [[name] for name in names]
    for text in [*names, *(phrase for each in phrases for phrase in each)]:
        check_text(text, path)
    if not all(phrases):
        name = names[phrases.index([])]
        raise InputError(f"{path} has no prompt for the class {name!r}")
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


def _read_file(path: str) -> dict[str, Any]:
    """Reads a file of prompts; turns CLIP_benchmark's two files into one object."""
    if not path.endswith(CLASSES_ENDING):
        return places.read_object(path)
    beside = path.removesuffix(CLASSES_ENDING) + TEMPLATES_ENDING
    lists = [places.read_object(p, {IMAGENET: list})[IMAGENET] for p in (path, beside)]
    templates = [t.replace("{c}", "{}") if _is_text(t) else t for t in lists[1]]
    return {"classes": lists[0], "templates": templates}


def _are_texts(found: Any) -> bool:
    """Returns whether a JSON value is a list of one text or more."""
    return isinstance(found, list) and bool(found) and all(map(_is_text, found))


def _is_text(found: Any) -> bool:
    return isinstance(found, str)


def _is_category(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and _is_text(found.get("name"))
        and _are_texts(found.get("prompts"))
    )


def read_subset(name: str) -> list[int]:
    """Returns the ImageNet labels (0 to 999, ascending) of a subset of the classes.

    Args:
      name: "imagenet_a" or "imagenet_r".

    Raises:
      InputError: another name.
    """
    subsets = json.loads(SUBSETS.read_text(encoding="utf-8"))
    del subsets["source"]
    return choose(subsets, name, "classes")
