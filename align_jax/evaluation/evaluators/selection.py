"""Selection of captions and pictures: SugarCrepe, Winoground, and sets like them.

An instance has some pictures and some captions. The model has to find the caption of
each picture and the picture of each caption, among those of the instance.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from align_jax.config import check_choices
from align_jax.embed.encoder import Encoder
from align_jax.errors import check_count
from align_jax.evaluation.benchmark_scores import selection_hits
from align_jax.evaluation.examples import Example
from align_jax.evaluation.ranking import check_finite
from align_jax.input.selection_set import (
    SelectionSet,
    read_benchmark,
    read_sugar_crepe,
    read_winoground,
)
from align_jax.ranges import Natural

FORMATS = ("wds", "sugar_crepe", "winoground")


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """The instances.

    Attributes:
      directory: path or URL of the set's folder.
      format: layout of the folder, "wds", "sugar_crepe" or "winoground", see
        `align_jax.input.selection_set`.
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
        if self.format == "winoground":
            return read_winoground(self.directory)
        return read_benchmark(self.directory, self.split)


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
        has parts, `text_acc` is the mean of all parts, such as `add_att_text_acc`. Ties
        count against the model. In CLIP_benchmark's code the first candidate wins them,
        as in `ties_in_order_text_acc`.
        """
        scores = self._score(embedder)
        _, pictures, captions = scores.shape
        parts = self._set.parts or {"": slice(None)}
        for prefix, in_order in (("", False), ("ties_in_order_", True)):
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
                    for part, mean in means.items():
                        yield f"{part}_{name}", mean
        count = min(pictures, captions)
        yield "text_chance", captions**-count
        if pictures > 1:
            yield "image_chance", pictures**-count
        if pictures == captions == 2:
            yield "chance", 1 / 6  # the right two of four scores are the highest
        for part, rows in self._set.parts.items():
            yield f"{part}_text_queries", rows.stop - rows.start
        yield "queries", len(scores)

    def _score(self, embedder: Encoder) -> np.ndarray:
        """Returns similarities of each instance's pictures and captions (N, I, C)."""
        captions = self._set.captions
        images = embedder.encode_images(self._set.read())
        texts = embedder.encode_texts([text for each in captions for text in each])
        check_finite(images, "picture")
        check_finite(texts, "caption")
        texts = texts.reshape(len(captions), -1, texts.shape[1])  # (N, C, D)
        return np.einsum("nid,ncd->nic", images[self._set.rows], texts)

    def examples(self, embedder: Encoder) -> Mapping[str, Iterator[Example]]:
        """Returns no examples for the report."""
        return {}
