"""Crisscrossed Captions on MSCOCO's 5,000 test pictures (arXiv 2004.15020).

People rated pairs from 0 to 5: two captions (STS), two pictures (SIS), or a caption and
a picture (SITS). In retrieval, a pair is right if its rating is at or above `FLOORS`,
so the original caption of a picture is wrong if people rate it lower. A query without a
right candidate is left out, and a query is never a candidate for itself. Correlations
are sampled Spearman bootstraps, see `sampled_correlation`. Their queries are the first
items of the pairs; those of SITS are the pictures. No source says so, but only this
choice gives deviations as large as the published ones: 1.1 to 1.4 points by 5,000
pictures, 0.5 to 0.6 by 25,000 captions. (ALIGN, arXiv 2102.05918, Tables 2, 3.)
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
from align_jax.ranges import Count, Natural, Seed

FILES = {
    "sts": ("caption1", "caption2"),
    "sis": ("image1", "image2"),
    "sits": ("caption", "image"),
}
QUERIES = {"sts": "caption1", "sis": "image1", "sits": "image"}  # of correlations
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
      ratings: path of the folder `data` in a clone of
        https://github.com/google-research-datasets/Crisscrossed-Captions.
      split: split of pictures and ratings, "test" or "val".
      expected_ratings: numbers of ratings that the three files must have, in the order
        of `FILES`; () for any. The default is that of "test".
      estimates: number of estimates of the bootstrap.
      seed: seed of the bootstrap.
    """

    directory: str
    ratings: str
    split: str = "test"
    expected_ratings: tuple[Natural, ...] = RATINGS
    estimates: Count = 1000
    seed: Seed = 0


class RankedTask(NamedTuple):
    """The right pairs of one of `TASKS`, and the queries' ranks.

    Attributes:
      right: (P, 2) right pairs: row number of the query and of the candidate.
      ranks: (Q,) rank of the best right candidate of every query; 0 is the top, and -1
        means that no candidate is right. See `pair_ranks`.
    """

    right: np.ndarray
    ranks: np.ndarray


class EmbeddedCaptions(NamedTuple):
    """The embeddings of pictures and captions, and the ranks of each task.

    Attributes:
      images: (I, D) embeddings.
      texts: (T, D) embeddings.
      tasks: key of `TASKS` -> right pairs and ranks.
    """

    images: np.ndarray
    texts: np.ndarray
    tasks: dict[str, RankedTask]


class Crisscrossed:
    """Recalls of four retrieval tasks, and three correlations.

    Attributes:
      found: result of `find` in the last run; None before it.
    """

    Config = CrisscrossedConfig

    def __init__(self, config: CrisscrossedConfig) -> None:
        """Reads pictures, captions and ratings.

        Raises:
          InputError: a file is missing, lacks columns or has an unexpected number of
            ratings, or a rated picture or caption is not in the dataset.
        """
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
        # For each key of `FILES`: the two rows of a pair (P, 2) and its rating (P,).
        self.rated = {kind: self._read(kind, rows) for kind in FILES}

    def _read(self, kind: str, rows: dict) -> tuple[np.ndarray, np.ndarray]:
        """Reads one of `FILES`.

        Args:
          kind: key of `FILES`.
          rows: {"caption": {caption's id: row}, "image": {file's name: row}}.

        Returns:
          Rows of the pairs (P, 2), in the order of `FILES[kind]`, and ratings (P,).
        """
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
                row = rows[column.rstrip("12")].get(line[column])
                if row is None:
                    raise InputError(
                        f"{path}, line {i + 2}: {config.directory} {config.split} has"
                        f" no {column} {line[column]!r}"
                    )
                pairs[i, side] = row
        return pairs, np.array([float(line["agg_score"]) for line in lines])

    def right(self, kind: str) -> np.ndarray:
        """Returns the rows (P, 2) of the right pairs of one of `FILES`, each once.

        The order is caption, picture for "sits"; "sts" and "sis" have both orders.
        """
        pairs, ratings = self.rated[kind]
        pairs = pairs[ratings >= FLOORS[kind]]
        if kind != "sits":
            pairs = pairs[pairs[:, 0] != pairs[:, 1]]
            pairs = np.concatenate([pairs, pairs[:, ::-1]])
        return np.unique(pairs, axis=0)

    def run(self, embedder: Encoder) -> Iterator[tuple[str, float]]:
        """Yields recalls for each of `TASKS`, then correlations for each of `FILES`.

        The names are `t2i_recall@5` and `t2i_queries`, `sits_spearman`,
        `sits_spearman_std` (deviation over the estimates) and `sits_queries`.
        """
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
            both = first[pairs[:, 0]], second[pairs[:, 1]]
            cosines = np.einsum("pd,pd->p", *both, dtype=np.float64)
            queries = pairs[:, FILES[kind].index(QUERIES[kind])]
            mean, deviation = sampled_correlation(
                queries, ratings, cosines, self._config.estimates, self._config.seed
            )
            yield f"{kind}_spearman", mean
            yield f"{kind}_spearman_std", deviation
            yield f"{kind}_queries", len(np.unique(queries))

    def find(self, embedder: Encoder) -> EmbeddedCaptions:
        """Embeds all pictures and captions, and ranks the right pairs of every task."""
        images = embedder.encode_images(self.pictures)
        texts = embedder.encode_texts(self.texts)
        right = self.right("sits")  # (P, 2), caption and picture
        by_text, by_image = pair_ranks(texts, images, right, embedder.mesh)
        tasks = {
            "t2i": RankedTask(right, by_text),
            "i2t": RankedTask(right[:, ::-1], by_image),
        }
        for name, kind, found in (("t2t", "sts", texts), ("i2i", "sis", images)):
            right = self.right(kind)
            itself = np.repeat(np.arange(len(found))[:, None], 2, 1)
            ranks, _ = pair_ranks(found, found, right, embedder.mesh, itself)
            tasks[name] = RankedTask(right, ranks)
        return EmbeddedCaptions(images, texts, tasks)

    def _show_picture(self, row: int) -> Item:
        return Item(self.texts[self.captions[row]], self.pictures[row])

    def examples(self, embedder: Encoder) -> dict[str, Iterator[Example]]:
        """Returns {title: examples} of the last run; before any run, of `find`."""
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
