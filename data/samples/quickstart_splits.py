"""The quickstart's raw training pairs and its evaluation dataset.

The evaluation dataset has one record per picture: `image`, `texts` (the English name),
`image_id`, `query` (false if the picture is only a candidate), `label` (index in
`categories.json`, -1 for none), `concept` and `style`. Its splits:

* unseen_drawing: one drawing of every trained concept. A drawing that was not trained
  on is a query; if there is none, a trained drawing is a candidate;
* unseen_concept: both drawings of every concept that is held out entirely;
* composed: skin tones, flags and joined sequences, none of which is trained on.
"""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from align_jax import places
from data.samples.emoji_drawings import (
    LICENSE_URLS,
    LICENSES,
    STYLES,
    Concept,
    alt_texts,
    share,
    trained_styles,
)
from data.samples.evaluation_writer import Row, write_rows

CATEGORIES = pathlib.Path(__file__).with_name("categories.json")
Pictures = dict[pathlib.Path, bytes]


def write_pairs(
    path: pathlib.Path, concepts: list[Concept], pictures: Pictures, seed: int
) -> None:
    """Writes the raw pairs of all trained drawings, with licenses, as a Parquet file.

    Args:
      path: path of the file.
      concepts: all concepts.
      pictures: PNG bytes by path of the drawing.
      seed: seed of the splits.
    """
    rows = [
        {
            "image": pictures[concept.drawings[style]],
            "alt_text": text,
            "language": language,
            "source": style,
            "license": LICENSES[style],
            "license_url": LICENSE_URLS[style],
            "file_name": concept.drawings[style].name,
            "concept": concept.code,
        }
        for concept in concepts
        for style in trained_styles(seed, concept)
        for language, text in alt_texts(concept, style)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_evaluation(
    folder: pathlib.Path, concepts: list[Concept], pictures: Pictures, seed: int
) -> None:
    """Writes the evaluation dataset, `queries.parquet` and `categories.json`.

    `queries.parquet` has the column `image_id`, the ids of the query pictures.
    `categories.json` has the categories' names and prompts, and prompt templates.

    Args:
      folder: output folder, which does not exist yet.
      concepts: all concepts.
      pictures: PNG bytes by path of the drawing.
      seed: seed of the splits.
    """
    categories = json.loads(CATEGORIES.read_text())
    label_of = {
        code: label
        for label, category in enumerate(categories["categories"])
        for code in category["concepts"]
    }
    splits = {
        split: [
            Row(
                pictures[concept.drawings[style]],
                concept.english,
                query,
                {
                    "label": label_of.get(concept.code, -1),
                    "concept": concept.code.encode(),
                    "style": style.encode(),
                },
            )
            for concept, style, query in drawings
        ]
        for split, drawings in evaluation_drawings(concepts, seed).items()
    }
    names = [category["name"] for category in categories["categories"]]
    features = {
        "label": tfds.features.ClassLabel(names=names),
        "concept": tfds.features.Text(),
        "style": tfds.features.Text(),
    }
    write_rows(folder, splits, features)
    for category in categories["categories"]:
        del category["concepts"]
    prompts = json.dumps(categories, indent=2, ensure_ascii=False)
    places.write_text(folder / "categories.json", prompts + "\n")


def evaluation_drawings(
    concepts: list[Concept], seed: int
) -> dict[str, list[tuple[Concept, str, bool]]]:
    """Returns (concept, style, whether the picture is a query) by split, in order."""
    splits: dict[str, list[tuple[Concept, str, bool]]] = {
        "unseen_drawing": [],
        "unseen_concept": [],
        "composed": [],
    }
    for concept in concepts:
        trained = trained_styles(seed, concept)
        unseen = [style for style in STYLES if style not in trained]
        if not concept.single:
            splits["composed"] += [(concept, style, True) for style in STYLES]
        elif not trained:
            splits["unseen_concept"] += [(concept, style, True) for style in STYLES]
        elif unseen:
            splits["unseen_drawing"].append((concept, unseen[0], True))
        else:
            style = STYLES[share(seed, "candidate", concept.code) < 0.5]
            splits["unseen_drawing"].append((concept, style, False))
    return splits
