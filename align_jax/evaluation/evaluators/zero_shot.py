"""Zero-shot classification by prompts (arXiv 2102.05918, section 5.2).

The embedding of a class is the mean of its prompts' embeddings, scaled to unit length.
The prediction for a picture is the class with the highest cosine; of classes with equal
embeddings, such as ImageNet's two of the name "missile", it is the first.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from align_jax.config import check_choices
from align_jax.embed.embedder import class_embeddings
from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError
from align_jax.evaluation.class_ranks import class_ranks, first_equals
from align_jax.evaluation.evaluators.prompts import Prompts, read_prompts, read_subset
from align_jax.evaluation.examples import Example, Item, Side, make_examples, show_each
from align_jax.evaluation.scores import mean_per_class, recall_at
from align_jax.input.benchmark_folder import BenchmarkPictures, read_templates
from align_jax.input.evaluation_records import FORMATS, LabelledPictures, LabelledSplits
from align_jax.input.word_attack import choose_wrong, write_word
from align_jax.ranges import Natural, Seed
from align_jax.texts import check_template

AVERAGES = ("unit", "plain")


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig(LabelledSplits):
    """The labelled pictures and the classes' prompts.

    Attributes:
      directory: dataset in TFDS's layout, or a set of format "wds".
      split: split of the dataset.
      prompts: name of a shipped set of prompts or path of a file, see `read_prompts`;
        "" for the classes and the templates of a set of format "wds".
      classes: candidate classes, if the dataset has pictures of some classes only:
        "imagenet_a" or "imagenet_r"; "" for all.
      average: scale of the prompts' embeddings when they are averaged: "unit" length,
        or "plain", as the text tower returns them.
      single: one template whose accuracy is reported beside that of all templates, as
        is that of the bare class names; "" for neither.
      expected_pictures: number of records that `split` must have; 0 for any.
      image_feature: name of the encoded picture in a record.
      label_feature: name of the label in a record; a record with label < 0 is skipped.
      format: "tfds", or "wds" for CLIP_benchmark's folders, see
        `align_jax.input.benchmark_folder`, which have no features.
      attack: whether the accuracy is also measured on the same pictures with the name
        of a wrong class written onto each, see `align_jax.input.word_attack`.
      attack_seed: seed that, with the picture's number, gives the wrong class and the
        position of its name.
    """

    directory: str
    split: str
    prompts: str
    classes: str = ""
    average: str = "unit"
    single: str = ""
    expected_pictures: Natural = 0
    image_feature: str = "image"
    label_feature: str = "label"
    format: str = "tfds"
    attack: bool = False
    attack_seed: Seed = 0

    def __post_init__(self) -> None:
        check_choices(self, {"average": AVERAGES, "format": FORMATS})
        if self.single:
            check_template(self.single, "the field single")

    def open_pictures(self) -> LabelledPictures | BenchmarkPictures:
        """Opens the labelled pictures; raises InputError as their class does."""
        if self.format == "wds":
            return BenchmarkPictures(self.directory, self.split, self.expected_pictures)
        return self.open(self.split, self.expected_pictures)

    def open_prompts(self, names: Sequence[str] | None) -> Prompts:
        """Reads the prompts of the classes with these names; raises InputError."""
        if self.format == "wds" and not self.prompts and names is not None:
            templates = read_templates(self.directory)
            return Prompts([*names], [[name] for name in names], templates)
        return read_prompts(self.prompts, names)


class RankedClasses(NamedTuple):
    """The embeddings of pictures and classes, and the ranks of the right classes.

    Attributes:
      images: (N, D) embeddings of the pictures.
      truth: (N,) indices of the right classes among the candidates.
      classes: (K, D) embeddings of the candidate classes.
      ranks: (N,) ranks of the right classes, see `class_ranks`.
    """

    images: np.ndarray
    truth: np.ndarray
    classes: np.ndarray
    ranks: np.ndarray


class ZeroShot:
    """Accuracy with class embeddings made from prompts.

    Attributes:
      found: result of `find` in the last run; None before it.
    """

    Config = ZeroShotConfig

    def __init__(self, config: ZeroShotConfig) -> None:
        """Opens pictures and prompts.

        Raises:
          InputError: pictures or prompts are missing, or their classes do not match.
        """
        self._config = config
        self.found: RankedClasses | None = None
        self.data = config.open_pictures()
        self.prompts = config.open_prompts(self.data.names)
        every = range(len(self.prompts.classes))
        self.kept = read_subset(config.classes) if config.classes else [*every]
        if self.kept[-1] not in every:
            raise InputError(
                f"{config.classes} has labels up to {self.kept[-1]}; {config.prompts}"
                f" describes {len(every)} classes"
            )
        self._names = [self.prompts.classes[label] for label in self.kept]
        if config.attack and len({*self._names}) < 2:
            raise InputError(
                f"{config.directory} has the one class name {self._names[0]!r}; an"
                " attack needs two or more"
            )

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields accuracies in [0, 1], then a baseline and counts.

        `majority` is the share of the most frequent label, `queries` the number of
        pictures, `candidates` that of classes, and `prompts` that of all their prompts.
        `ensemble_gain` is `top1` minus `single_prompt_top1`, the accuracy of the
        template `single`; `ensemble_gain_over_bare_name` is `top1` minus
        `bare_name_top1`, that of the class name alone. ALIGN's paper has a gain of 2.9
        points and does not name its baseline.

        With `attack`, `attacked_top1` is the accuracy on the pictures with a word,
        `attack_loss` is `top1` minus that, and `attack_success` the share of these
        pictures for which the model chooses the word's class.
        """
        self.found = self.find(embedder)
        images, truth, _, ranks = self.found
        yield "top1", recall_at(ranks, 1)
        yield "top5", recall_at(ranks, 5)
        yield "mean_per_class", mean_per_class(ranks == 0, truth)
        if self._config.single:
            for name, template, gain in (
                ("single_prompt_top1", self._config.single, "ensemble_gain"),
                ("bare_name_top1", "{}", "ensemble_gain_over_bare_name"),
            ):
                _, found = self._rank(embedder, images, truth, [template])
                yield name, recall_at(found, 1)
                yield gain, recall_at(ranks, 1) - recall_at(found, 1)
        if self._config.attack:
            yield from self._attack(embedder, self.found)
        yield "majority", float(np.bincount(truth).max() / len(truth))
        yield "queries", len(truth)
        yield "candidates", len(self.kept)
        yield "prompts", sum(map(len, self._fill(self.prompts.templates)))

    def find(self, embedder: Encoder) -> RankedClasses:
        """Embeds pictures and classes, and ranks the right class of each picture.

        Raises:
          InputError: no picture has a label, or one has the label of no candidate.
        """
        labels: list[int] = []
        images = embedder.encode_images(self._pictures(labels))  # (N, D)
        truth, templates = np.array(labels), self.prompts.templates
        classes, ranks = self._rank(embedder, images, truth, templates)
        return RankedClasses(images, truth, classes, ranks)

    def _rank(
        self,
        embedder: Encoder,
        images: np.ndarray,
        truth: np.ndarray,
        templates: list[str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns class embeddings (K, D) made from `templates`, and ranks (N,).

        Args:
          embedder: model that embeds the prompts.
          images: (N, D) embeddings of the pictures.
          truth: (N,) indices of the right classes.
          templates: sentences with a {} for the class.
        """
        unit = self._config.average == "unit"
        classes = class_embeddings(embedder, self._fill(templates), unit)
        return classes, class_ranks(images, classes, truth, embedder.mesh)

    def _attack(
        self, embedder: Encoder, found: RankedClasses
    ) -> Iterator[tuple[str, float]]:
        """Yields the accuracy on pictures with a word, its loss, and the success."""
        wrong: list[int] = []  # class of each word

        def write() -> Iterator[bytes]:
            for number, picture in enumerate(self._pictures([])):
                random = np.random.default_rng((self._config.attack_seed, number))
                wrong.append(choose_wrong(self._names, found.truth[number], random))
                yield write_word(picture, self._names[wrong[-1]], random)

        images, mesh = embedder.encode_images(write()), embedder.mesh
        top1 = recall_at(class_ranks(images, found.classes, found.truth, mesh), 1)
        yield "attacked_top1", top1
        yield "attack_loss", recall_at(found.ranks, 1) - top1
        chosen = class_ranks(images, found.classes, np.array(wrong), mesh)
        yield "attack_success", recall_at(chosen, 1)

    def examples(self, embedder: Encoder) -> dict[str, Iterator[Example]]:
        """Returns {title: examples} of the last run; before any run, of `find`."""
        found = self.found or self.find(embedder)
        names, truth = self._names, found.truth

        def show_pictures(rows: Sequence[int]) -> dict[int, Item]:
            shown = self.data.some(rows)
            return {row: Item(names[truth[row]], shown[row]) for row in rows}

        pairs = np.stack([np.arange(len(truth)), truth], 1)
        pictures = Side(found.images, show_pictures)
        classes = Side(found.classes, show_each(lambda k: Item(names[k])))
        title = "Pictures and their best classes"
        first = first_equals(found.classes)
        shown = make_examples(pictures, classes, pairs, found.ranks, first=first)
        return {title: shown}

    def _fill(self, templates: list[str]) -> list[list[str]]:
        """Returns K lists: the prompts of each candidate class, from `templates`."""
        filled = self.prompts.fill(templates)
        return [filled[label] for label in self.kept]

    def _pictures(self, labels: list[int]) -> Iterator[bytes]:
        """Yields the labelled pictures; raises InputError as `find` does.

        The index of each picture's class among the candidates is appended to `labels`.
        """
        index = {label: i for i, label in enumerate(self.kept)}
        config = self._config
        for picture, label in self.data:
            if label not in index:
                raise InputError(
                    f"{config.directory} {config.split} has a picture of label {label},"
                    f" which is none of the {len(index)} classes of"
                    f" {config.classes or config.prompts}"
                )
            labels.append(index[label])
            yield picture
        if not labels:
            raise InputError(
                f"{config.directory} {config.split} has no labelled picture"
            )
