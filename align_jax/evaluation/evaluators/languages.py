"""Image-text retrieval in many languages: recalls of each language, and their means."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from align_jax.config import check_choices
from align_jax.embed.encoder import Encoder
from align_jax.errors import check_count
from align_jax.evaluation.examples import Example
from align_jax.evaluation.ranking import pair_ranks
from align_jax.evaluation.scores import CUTS, chance_recall, recall_at
from align_jax.input.language_set import (
    LANGUAGES,
    LanguageSet,
    read_crossmodal,
    read_xtd,
)
from align_jax.ranges import Natural

FORMATS = ("crossmodal", "xtd")


@dataclasses.dataclass(frozen=True)
class LanguagesConfig:
    """The pictures and the languages.

    Attributes:
      directory: path or URL of the set's folder.
      languages: codes of the languages; by default those of Crossmodal-3600.
      texts_per_image: number of captions of each picture that are used, from the first
        on; 0 for all. CLIP_benchmark uses the first one.
      expected_images: number of pictures that the set must have; 0 for any number.
      format: layout of the folder, "crossmodal" or "xtd", see
        `align_jax.input.language_set`.
      pictures: path or URL of the folder of pictures, for "xtd".
    """

    directory: str
    languages: tuple[str, ...] = tuple(LANGUAGES)
    texts_per_image: Natural = 1
    expected_images: Natural = 0
    format: str = "crossmodal"
    pictures: str = ""

    def __post_init__(self) -> None:
        check_choices(self, {"format": FORMATS})
        if bool(self.pictures) != (self.format == "xtd"):
            raise ValueError(
                f"pictures is {self.pictures!r} for the format {self.format!r}; wanted"
                " a folder for xtd, and none for crossmodal"
            )
        if not self.languages or len({*self.languages}) < len(self.languages):
            raise ValueError(
                f"languages are {self.languages}; wanted one or more, each once"
            )

    def read(self) -> LanguageSet:
        """Reads the set; raises InputError as the format's reader does."""
        if self.format == "xtd":
            return read_xtd(self.directory, self.pictures, self.languages)
        return read_crossmodal(self.directory, self.languages)


class Languages:
    """Recall of pictures by captions, and of captions by pictures, in each language."""

    Config = LanguagesConfig

    def __init__(self, config: LanguagesConfig) -> None:
        """Reads the captions.

        Raises:
          InputError: a file is missing or damaged, a picture has no caption in a
            language, or the number of pictures is not the expected one.
        """
        self._set = config.read()
        self._used = config.texts_per_image or None
        count = len(self._set.paths)
        check_count(config.directory, count, config.expected_images, "pictures")

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields the means over the languages, then the values of each.

        The means are `mean_recall` (of the recalls at 1, 5 and 10, both ways), and
        `i2t_recall@1` and its like with their chance levels. The recalls of German are
        `de_i2t_recall@1` and so on, of `de_i2t_queries` queries.
        """
        images = embedder.encode_images(self._set.read())
        values = {
            language: self._score(embedder, images, captions)
            for language, captions in self._set.captions.items()
        }
        means = {
            name: float(np.mean([found[name] for found in values.values()]))
            for name in next(iter(values.values()))
        }
        recalls = [mean for name, mean in means.items() if "recall" in name]
        yield "mean_recall", float(np.mean(recalls))
        yield from means.items()
        for language, found in values.items():
            for name, value in found.items():
                if "chance" not in name:
                    yield f"{language}_{name}", value

    def _score(
        self, embedder: Encoder, images: np.ndarray, captions: list[list[str]]
    ) -> dict[str, float]:
        """Returns recalls, chance levels and counts of one language by name.

        Args:
          embedder: model that embeds the captions.
          images: (I, D) embeddings of the pictures.
          captions: I lists of captions.
        """
        used = [texts[: self._used] for texts in captions]
        texts = embedder.encode_texts([text for each in used for text in each])
        counts = np.array([len(each) for each in used])
        rows = np.repeat(np.arange(len(used)), counts)
        pairs = np.stack([rows, np.arange(len(texts))], 1)
        ranks = pair_ranks(images, texts, pairs, embedder.mesh)
        rights = (counts, np.ones(len(texts), int))  # right candidates of each query
        values: dict[str, float] = {}
        for name, side, candidates in (("i2t", 0, texts), ("t2i", 1, images)):
            for k in CUTS:
                values[f"{name}_recall@{k}"] = recall_at(ranks[side], k)
                chance = chance_recall(rights[side], len(candidates), k)
                values[f"{name}_chance@{k}"] = chance
            values[f"{name}_queries"] = len(ranks[side])
        return values

    def examples(self, embedder: Encoder) -> Mapping[str, Iterator[Example]]:
        """Returns no examples for the report."""
        return {}
