"""Selection of captions and pictures: SugarCrepe, Winoground, ARO and sets like them.

An instance has some pictures and some captions. The model has to find the caption of
each picture and the picture of each caption, among those of the instance.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from align_jax.config import check_choices
from align_jax.embed.encoder import Encoder
from align_jax.embed.saved import content_id
from align_jax.errors import check_count
from align_jax.evaluation.benchmark_scores import selection_hits
from align_jax.evaluation.examples import Example
from align_jax.evaluation.ranking import check_finite
from align_jax.input.aro_set import read_attribution, read_order, read_relation
from align_jax.input.selection_set import (
    SelectionSet,
    read_benchmark,
    read_sugar_crepe,
    read_winoground,
)
from align_jax.ranges import Natural

# Formats that are read from one folder.
READERS: dict[str, Callable[[str], SelectionSet]] = {
    "winoground": read_winoground,
    "aro_relation": read_relation,
    "aro_attribution": read_attribution,
    "aro_order": read_order,
}
FORMATS = ("wds", "sugar_crepe", *READERS)


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """The instances.

    Attributes:
      directory: path or URL of the set's folder.
      format: layout of the folder, one of `FORMATS`, see
        `align_jax.input.selection_set` and `align_jax.input.aro_set`.
      pictures: path or URL of the folder of pictures, for "sugar_crepe".
      split: name of the folder with the tars, for "wds".
      expected: number of instances that the set must have; 0 for any number.
    """

    directory: str
    format: str = "wds"
    pictures: str = ""
    split: str = "test"
    expected: Natural = 0

    def __post_init__(self) -> None:
        check_choices(self, {"format": FORMATS})
        if bool(self.pictures) != (self.format == "sugar_crepe"):
            raise ValueError(
                f"pictures is {self.pictures!r} for the format {self.format!r}; wanted"
                " a folder for sugar_crepe, and none for the others"
            )

    def read(self) -> SelectionSet:
        """Reads the set; raises InputError as the format's reader does."""
        if self.format == "sugar_crepe":
            return read_sugar_crepe(self.directory, self.pictures)
        if self.format == "wds":
            return read_benchmark(self.directory, self.split)
        return READERS[self.format](self.directory)


class Selection:
    """Shares of the instances with all captions right, with all pictures, with both."""

    Config = SelectionConfig

    def __init__(self, config: SelectionConfig) -> None:
        """Reads the captions.

        Raises:
          InputError: a file is missing or damaged, or the set has no instances or
            another number than expected.
        """
        self._set = config.read()
        count = len(self._set.captions)
        check_count(config.directory, count, config.expected, "instances")

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields `text_acc`, `image_acc` and `acc`, then chance levels and counts.

        `image_acc` and `acc` are left out if an instance has one picture. If the set
        has parts, `text_acc` is the mean of all parts, such as `add_att_text_acc`, and
        `plain_text_acc` the mean of all instances. Ties count against the model. In
        CLIP_benchmark's code the first candidate wins them, as in
        `ties_in_order_text_acc`; it is left out if that is a wrong one.
        """
        scores = self._score(embedder)
        _, pictures, captions = scores.shape
        parts = self._set.parts or {"": np.arange(len(scores))}
        orders = {"": False}
        if self._set.right_first:
            orders["ties_in_order_"] = True
        for prefix, in_order in orders.items():
            texts, images = selection_hits(scores, in_order)
            hits = {"text_acc": texts}
            if pictures > 1:
                hits |= {"image_acc": images, "acc": texts & images}
            for name, right in hits.items():
                means = {
                    part: float(right[rows].mean()) for part, rows in parts.items()
                }
                yield prefix + name, float(np.mean([*means.values()]))
                if self._set.parts and not in_order:
                    yield f"plain_{name}", float(right.mean())
                    for part, mean in means.items():
                        yield f"{part}_{name}", mean
        count = min(pictures, captions)
        yield "text_chance", captions**-count
        if pictures > 1:
            yield "image_chance", pictures**-count
        if pictures == captions == 2:
            yield "chance", 1 / 6  # the right two of four scores are the highest
        for part, rows in self._set.parts.items():
            yield f"{part}_text_queries", len(rows)
        yield "queries", len(scores)

    def _score(self, embedder: Encoder) -> np.ndarray:
        """Returns similarities of each instance's pictures and captions (N, I, C)."""
        captions = self._set.captions
        numbers: list[int] = []  # row of the embedding of each picture
        images = embedder.encode_images(_each_once(self._set.read(), numbers))
        texts = embedder.encode_texts([text for each in captions for text in each])
        check_finite(images, "picture")
        check_finite(texts, "caption")
        texts = texts.reshape(len(captions), -1, texts.shape[1])  # (N, C, D)
        rows = np.array(numbers)[self._set.rows]  # (N, I)
        return np.einsum("nid,ncd->nic", images[rows], texts)

    def examples(self, embedder: Encoder) -> Mapping[str, Iterator[Example]]:
        """Returns no examples for the report."""
        return {}


def _each_once(pictures: Iterable[bytes], numbers: list[int]) -> Iterator[bytes]:
    """Yields the different pictures; appends the number of each picture among them."""
    known: dict[str, int] = {}
    for picture in pictures:
        count = len(known)
        numbers.append(known.setdefault(content_id(picture), count))
        if len(known) > count:
            yield picture
