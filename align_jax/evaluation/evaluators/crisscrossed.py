"""Crisscrossed Captions on MSCOCO's 5,000 test pictures (arXiv 2004.15020).

Ratings from 0 to 5 of pairs of captions (STS), of pictures (SIS) and of a caption and a
picture (SITS). Retrieval counts as right what is rated at or above `FLOORS`, so the
original caption of a picture is not right where people rate it lower; a query without
anything right is left out, and its own row is no candidate. Correlations are sampled
Spearman bootstraps, see `sampled_correlation`. (ALIGN, arXiv 2102.05918, Tables 2, 3.)
"""

import csv
import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from align_jax import places
from align_jax.embed.encoder import Encoder
from align_jax.errors import InputError
from align_jax.evaluation.examples import Example, Item, Side, make_examples, show_each
from align_jax.evaluation.ranking import pair_ranks
from align_jax.evaluation.scores import CUTS, recall_at, sampled_correlation
from align_jax.input.evaluation_records import evaluation_records

FILES = {
    "sts": ("caption1", "caption2"),
    "sis": ("image1", "image2"),
    "sits": ("caption", "image"),
}
FLOORS = {"sts": 3.0, "sis": 2.5, "sits": 3.0}  # as in arXiv 2004.15020, section 3
RATINGS = (44_045, 46_719, 44_833)  # lines of the test files
CAPTION = "COCO_val2014:sentid:"
TASKS = {
    "i2t": "Pictures and their best captions",
    "t2i": "Captions and their best pictures",
    "t2t": "Captions and the captions most like them",
    "i2i": "Pictures and the pictures most like them",
}


@dataclasses.dataclass(frozen=True)
class CrisscrossedConfig:
    """The pictures with their captions, and the ratings.

    Attributes:
      directory: MSCOCO as `python -m data.eval_sets coco` writes it.
      ratings: the folder `data` of
        https://github.com/google-research-datasets/Crisscrossed-Captions.
      split: of both, "test" or "val".
      expected_ratings: lines of the three files, in the order of `FILES`; other counts
        are refused; () takes any.
      estimates: of the bootstrap.
      seed: of the bootstrap.
    """

    directory: str
    ratings: str
    split: str = "test"
    expected_ratings: tuple = RATINGS
    estimates: int = 1000
    seed: int = 0


class Task(NamedTuple):
    """What is right in one of `TASKS`, and where it was found.

    Attributes:
      right: (P, 2), query and candidate of what is right.
      ranks: (Q,), see `pair_ranks`.
    """

    right: np.ndarray
    ranks: np.ndarray


class EmbeddedCaptions(NamedTuple):
    """What a model makes of the pictures and captions.

    Attributes:
      images: (I, D) embeddings.
      texts: (T, D) embeddings.
      tasks: by name.
    """

    images: np.ndarray
    texts: np.ndarray
    tasks: dict[str, Task]


class Crisscrossed:
    """Recalls of four retrieval tasks and three correlations.

    Attributes:
      found: what `find` gave to the last run; None before it.
    """

    Config = CrisscrossedConfig

    def __init__(self, config: CrisscrossedConfig):
        """Reads pictures, captions and ratings; raises InputError where they differ."""
        self._config = config
        wanted = ("image", "texts", "caption_ids", "file_name")
        records = evaluation_records(config.directory, config.split, wanted)
        self.found: EmbeddedCaptions | None = None
        self.pictures = [record["image"] for record in records]
        self.texts: list[str] = []
        caption_rows: dict[str, int] = {}
        image_rows: dict[str, int] = {}
        self.captions: list[int] = []  # first caption of each picture
        for row, record in enumerate(records):
            self.captions.append(len(self.texts))
            image_rows[record["file_name"].decode()] = row
            for number, text in zip(
                record["caption_ids"], record["texts"], strict=True
            ):
                caption_rows[CAPTION + number.decode()] = len(self.texts)
                self.texts.append(text.decode())
        rows = {"caption": caption_rows, "image": image_rows}
        # Of each kind the two rows (P, 2) and the rating (P,).
        self.rated = {kind: self._read(kind, rows) for kind in FILES}

    def _read(self, kind: str, rows: dict) -> tuple[np.ndarray, np.ndarray]:
        """The ratings of one kind."""
        config = self._config
        folder = places.resolve(config.ratings)
        path = os.path.join(folder, f"{kind}_{config.split}.csv")
        if not places.exists(path):
            raise InputError(
                f"no ratings at {path}; clone"
                " https://github.com/google-research-datasets/Crisscrossed-Captions and"
                " name its folder `data`"
            )
        reader = csv.DictReader(places.read_text(path).splitlines())
        lacking = {*FILES[kind], "agg_score"} - set(reader.fieldnames or ())
        if lacking:
            raise InputError(f"{path} lacks the columns {sorted(lacking)}")
        lines = list(reader)
        wanted = dict(zip(FILES, config.expected_ratings, strict=False)).get(kind)
        if wanted not in (None, len(lines)):
            raise InputError(f"{path} has {len(lines)} ratings; wanted {wanted}")
        pairs = np.zeros((len(lines), 2), np.int64)
        for i, line in enumerate(lines):
            for side, column in enumerate(FILES[kind]):
                place = rows[column.rstrip("12")].get(line[column])
                if place is None:
                    raise InputError(
                        f"{path}, line {i + 2}: {config.directory} {config.split} has"
                        f" no {column} {line[column]!r}"
                    )
                pairs[i, side] = place
        return pairs, np.array([float(line["agg_score"]) for line in lines])

    def right(self, kind: str) -> np.ndarray:
        """Pairs (P, 2) that are rated as right, each once; STS and SIS both ways."""
        pairs, ratings = self.rated[kind]
        pairs = pairs[ratings >= FLOORS[kind]]
        if kind != "sits":
            pairs = pairs[pairs[:, 0] != pairs[:, 1]]
            pairs = np.concatenate([pairs, pairs[:, ::-1]])
        return np.unique(pairs, axis=0)

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields recalls with their counts, then correlations with their deviations."""
        self.found = self.find(embedder)
        images, texts, tasks = self.found
        for name in TASKS:
            asked = tasks[name].ranks[tasks[name].ranks >= 0]
            for k in CUTS:
                yield f"{name}_recall@{k}", recall_at(asked, k)
            yield f"{name}_queries", len(asked)
        sides = {
            "sts": (texts, texts),
            "sis": (images, images),
            "sits": (texts, images),
        }
        for kind, (first, second) in sides.items():
            pairs, ratings = self.rated[kind]
            cosines = np.einsum("pd,pd->p", first[pairs[:, 0]], second[pairs[:, 1]])
            mean, deviation = sampled_correlation(
                pairs[:, 0], ratings, cosines, self._config.estimates, self._config.seed
            )
            yield f"{kind}_spearman", mean
            yield f"{kind}_spearman_std", deviation
            yield f"{kind}_queries", len(np.unique(pairs[:, 0]))

    def find(self, embedder: Encoder) -> EmbeddedCaptions:
        """Embeds everything and ranks what is right in every task."""
        images = embedder.encode_images(self.pictures)
        texts = embedder.encode_texts(self.texts)
        right = self.right("sits")  # (P, 2), caption and picture
        by_text, by_image = pair_ranks(texts, images, right, embedder.mesh)
        tasks = {"t2i": Task(right, by_text), "i2t": Task(right[:, ::-1], by_image)}
        for name, kind, found in (("t2t", "sts", texts), ("i2i", "sis", images)):
            right = self.right(kind)
            itself = np.repeat(np.arange(len(found))[:, None], 2, 1)
            ranks, _ = pair_ranks(found, found, right, embedder.mesh, itself)
            tasks[name] = Task(right, ranks)
        return EmbeddedCaptions(images, texts, tasks)

    def _show_picture(self, row: int) -> Item:
        return Item(self.texts[self.captions[row]], self.pictures[row])

    def examples(self, embedder: Encoder) -> dict[str, Iterator[Example]]:
        """Queries of every task, of the last run or, before it, of one that is made."""
        found = self.found or self.find(embedder)
        sides = {
            "t": Side(found.texts, show_each(lambda row: Item(self.texts[row]))),
            "i": Side(found.images, show_each(self._show_picture)),
        }
        return {
            title: make_examples(
                sides[name[0]],
                sides[name[-1]],
                pairs=found.tasks[name].right,
                ranks=found.tasks[name].ranks,
                exclude_itself=name[0] == name[-1],
            )
            for name, title in TASKS.items()
        }
