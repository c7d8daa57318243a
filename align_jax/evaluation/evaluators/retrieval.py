"""Image-text retrieval: recall at 1, 5 and 10 both ways (arXiv 2102.05918, sec. 5.1).

A record holds a picture, its texts and, optionally, a flag `query`. The pictures and
texts of all records are candidates. Those of records with a true flag, or without the
flag, are also queries. A query is right at k if any of its partners is among the first
k candidates.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from align_jax.config import check_choices
from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError, check_count
from align_jax.evaluation.examples import Example, Item, Side, make_examples, show_each
from align_jax.evaluation.ranking import pair_ranks
from align_jax.evaluation.scores import CUTS, chance_recall, recall_at
from align_jax.input.benchmark_folder import read_captions
from align_jax.input.evaluation_records import FORMATS, evaluation_records
from align_jax.ranges import Natural


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """The pairs to retrieve.

    Attributes:
      directory: dataset in TFDS's layout, or a set of format "wds".
      split: split of the dataset.
      image_feature: name of the encoded picture in a record.
      texts_feature: name of the list of texts in a record.
      texts_per_image: number of texts of each picture that are used, from the first on
        (MSCOCO's are often cut to five); 0 for all.
      merge_texts: whether equal texts are one candidate. Published numbers count every
        caption separately.
      expected_images: number of pictures that the split must have; 0 for any.
      expected_texts: number of used texts, before merging, that the split must have; 0
        for any.
      format: "tfds", or "wds" for CLIP_benchmark's folders, see
        `align_jax.input.benchmark_folder`, which have no features.
    """

    directory: str
    split: str
    image_feature: str = "image"
    texts_feature: str = "texts"
    texts_per_image: Natural = 0
    merge_texts: bool = False
    expected_images: Natural = 0
    expected_texts: Natural = 0
    format: str = "tfds"

    def __post_init__(self) -> None:
        check_choices(self, {"format": FORMATS})

    def read(self) -> list[dict]:
        """Reads the records; raises InputError as `evaluation_records` does."""
        wanted = (self.image_feature, self.texts_feature)
        if self.format == "tfds":
            return evaluation_records(self.directory, self.split, wanted)
        found = read_captions(self.directory, self.split, self.expected_images)
        encoded = ((image, [text.encode() for text in texts]) for image, texts in found)
        return [dict(zip(wanted, pair, strict=True)) for pair in encoded]


class RankedPairs(NamedTuple):
    """The embeddings of pictures and texts, and their ranks.

    Attributes:
      images: (I, D) embeddings.
      texts: (T, D) embeddings.
      ranks: (I,) rank of each picture's best right text, and (T,) rank of each text's
        best right picture, see `pair_ranks`.
    """

    images: np.ndarray
    texts: np.ndarray
    ranks: tuple[np.ndarray, np.ndarray]


class Retrieval:
    """Recall of pictures by texts and of texts by pictures.

    Attributes:
      pictures: list of I encoded pictures.
      texts: list of T texts.
      pairs: (P, 2) indices of picture and text of all right pairs.
      image_queries: (I,) bools, whether a picture is a query.
      text_queries: (T,) bools, whether a text is a query.
      found: result of `find` in the last run; None before it.
    """

    Config = RetrievalConfig

    def __init__(self, config: RetrievalConfig) -> None:
        """Reads the split.

        Raises:
          InputError: the split or a feature is missing, no picture has a text, or the
            size is unexpected.
        """
        records = config.read()
        self.pictures = [record[config.image_feature] for record in records]
        used = config.texts_per_image or None
        owned = [
            (row, text.decode())
            for row, record in enumerate(records)
            for text in record[config.texts_feature][:used]
        ]
        place = f"split {config.split!r} of {config.directory}"
        check_count(place, len(records), config.expected_images, "pictures")
        if not owned:
            raise InputError(
                f"no picture of {place} has a text in {config.texts_feature!r}"
            )
        check_count(place, len(owned), config.expected_texts, "texts")
        self.texts = [text for _, text in owned]
        indices: Sequence[int] = range(len(owned))
        if config.merge_texts:
            self.texts = list(dict.fromkeys(self.texts))
            index = {text: i for i, text in enumerate(self.texts)}
            indices = [index[text] for _, text in owned]
        rows = [row for row, _ in owned]
        self.pairs = np.unique(np.stack([rows, indices], 1), axis=0)
        self.found: RankedPairs | None = None
        # A picture without texts has no right answer: it is a candidate, not a query.
        self.image_queries = np.array([r.get("query", True) for r in records], bool)
        self.image_queries[np.setdiff1d(range(len(records)), rows)] = False
        self.text_queries = np.zeros(len(self.texts), bool)
        self.text_queries[self.pairs[self.image_queries[self.pairs[:, 0]], 1]] = True

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields recalls and their chance levels in [0, 1], counts, and `mean_recall`.

        If pictures are the queries, the names are `i2t_recall@5`, `i2t_chance@5`,
        `i2t_queries` and `i2t_candidates`; if texts are, they begin with `t2i`.
        """
        self.found = self.find(embedder)
        sizes = (len(self.pictures), len(self.texts))
        recalls = []
        for name, side, queries in (
            ("i2t", 0, self.image_queries),
            ("t2i", 1, self.text_queries),
        ):
            right = np.bincount(self.pairs[:, side], minlength=sizes[side])[queries]
            candidates = sizes[1 - side]
            for k in CUTS:
                recalls.append(recall_at(self.found.ranks[side][queries], k))
                yield f"{name}_recall@{k}", recalls[-1]
                yield f"{name}_chance@{k}", chance_recall(right, candidates, k)
            yield f"{name}_queries", int(queries.sum())
            yield f"{name}_candidates", candidates
        yield "mean_recall", float(np.mean(recalls))

    def find(self, embedder: Encoder) -> RankedPairs:
        """Embeds all pictures and texts, and ranks the right pairs both ways."""
        images = embedder.encode_images(self.pictures)
        texts = embedder.encode_texts(self.texts)
        ranks = pair_ranks(images, texts, self.pairs, embedder.mesh)
        return RankedPairs(images, texts, ranks)

    def matched_pairs(
        self, embedder: Encoder
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns embeddings of pictures (I, D) and texts (T, D), and `pairs`.

        The embeddings are of the last run; before any run, they come from `find`.
        """
        found = self.found or self.find(embedder)
        return found.images, found.texts, self.pairs

    def examples(self, embedder: Encoder) -> dict[str, Iterator[Example]]:
        """Returns {title: examples} of the last run; before any run, of `find`."""
        found = self.found or self.find(embedder)
        first = dict(self.pairs[::-1].tolist())  # text of each picture

        def show_picture(row: int) -> Item:
            text = self.texts[first[row]] if row in first else "no text"
            return Item(text, self.pictures[row])

        pictures = Side(found.images, show_each(show_picture))
        texts = Side(found.texts, show_each(lambda i: Item(self.texts[i])))
        return {
            "Pictures and their best texts": make_examples(
                pictures, texts, self.pairs, found.ranks[0], self.image_queries
            ),
            "Texts and their best pictures": make_examples(
                texts, pictures, self.pairs[:, ::-1], found.ranks[1], self.text_queries
            ),
        }
