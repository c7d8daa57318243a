"""The raw training pairs and the evaluation dataset of the bench of recipes.

The pairs are those of the quickstart's emoji and of clean drawings of Open Clip Art.
Every split of the evaluation dataset exists twice: settings are chosen by the splits
`choose_*`, and the scores of the splits `report_*` are published.

* unseen_drawing, unseen_concept: the quickstart's splits of the same names (see
  `data.samples.quickstart_splits`), each cut into two halves by concept;
* clipart: drawings of Open Clip Art that are not trained on, with their titles.
"""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

from data.samples import quickstart_splits
from data.samples.clean_clipart import CleanDrawing, split_drawings
from data.samples.emoji_drawings import Concept, share
from data.samples.evaluation_writer import Row, write_rows
from data.samples.quickstart_splits import Pictures

EMOJI_SPLITS = ("unseen_drawing", "unseen_concept")
LICENSE_URL = "https://creativecommons.org/publicdomain/zero/1.0/"


def write_pairs(
    folder: pathlib.Path,
    concepts: list[Concept],
    pictures: Pictures,
    clipart: list[CleanDrawing],
    seed: int,
) -> None:
    """Writes the raw training pairs as emoji.parquet and openclipart.parquet.

    Args:
      folder: output folder, which does not exist yet.
      concepts: all emoji.
      pictures: PNG bytes by path of the emoji's drawing.
      clipart: clean drawings of Open Clip Art.
      seed: seed of the splits.
    """
    folder.mkdir()
    quickstart_splits.write_pairs(folder / "emoji.parquet", concepts, pictures, seed)
    rows = [
        {
            "image": clipart[i].picture,
            "alt_text": text,
            # Few authors state the language of their texts; most of them are English.
            "language": "en",
            "source": "openclipart",
            "license": "CC0 1.0",
            "license_url": LICENSE_URL,
            "file_name": clipart[i].url,
            "concept": "",
        }
        for i in split_drawings(clipart, seed)["train"]
        for text in clipart[i].texts
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "openclipart.parquet")


def write_evaluation(
    folder: pathlib.Path,
    concepts: list[Concept],
    pictures: Pictures,
    clipart: list[CleanDrawing],
    seed: int,
) -> None:
    """Writes the evaluation dataset, and the ids of its queries to `queries.parquet`.

    The arguments are those of `write_pairs`.
    """
    write_rows(folder, evaluation_rows(concepts, pictures, clipart, seed), {})


def evaluation_rows(
    concepts: list[Concept],
    pictures: Pictures,
    clipart: list[CleanDrawing],
    seed: int,
) -> dict[str, list[Row]]:
    """Returns the evaluation dataset's rows by split; arguments as in `write_pairs`."""
    rows: dict[str, list[Row]] = {}
    drawings = quickstart_splits.evaluation_drawings(concepts, seed)
    parts = split_drawings(clipart, seed)
    for half in ("choose", "report"):
        for split in EMOJI_SPLITS:
            rows[f"{half}_{split}"] = [
                Row(pictures[concept.drawings[style]], concept.english, query)
                for concept, style, query in drawings[split]
                if half == half_of(seed, concept)
            ]
        rows[f"{half}_clipart"] = [
            Row(clipart[i].picture, clipart[i].texts[0], True) for i in parts[half]
        ]
    return rows


def half_of(seed: int, concept: Concept) -> str:
    """Returns the half, "choose" or "report", of an emoji's evaluation drawings."""
    return ("choose", "report")[share(seed, "report", concept.code) < 0.5]
