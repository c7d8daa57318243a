"""Makes small sets of DataComp's 38, and one of several labels, from emoji.

The pictures are the quickstart's drawings on a page, each at a random size and place.
They are lossless WebP, PNG and JPEG in turn. The classes are names of emoji; there are
as many as the published set has.
"""

import io
import json
import pathlib
import zipfile

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from align_jax.evaluation.datacomp import SCORED, DatacompSet
from align_jax.pictures import read_picture

SIDE = 112  # pixels of a page
TEMPLATES = ["{c}", "an emoji of {c}"]
MULTILABEL = "voc2007_multilabel"
CUES = 12  # candidates of a cue
FORMATS = {
    "webp": {"lossless": True},
    "png": {},
    "jpg": {"quality": 90, "format": "JPEG"},
}


class Drawings:
    """English names of concepts, and pages with drawings of them.

    Attributes:
      names: list of the names, all different.
    """

    def __init__(self, pairs: str) -> None:
        """Reads drawings and names from the quickstart's pairs.parquet."""
        self.names: list[str] = []
        self._drawings: list[list[np.ndarray]] = []
        numbers: dict[str, int] = {}
        columns = ["image", "alt_text", "concept", "source"]
        table = pq.read_table(
            pairs, columns=columns, filters=[("language", "==", "en")]
        )
        read: set[tuple[str, str]] = set()
        for row in table.to_pylist():
            concept, name = row["concept"], row["alt_text"]
            if concept not in numbers:
                if name in self.names:
                    continue
                numbers[concept] = len(self.names)
                self.names.append(name)
                self._drawings.append([])
            if (concept, row["source"]) not in read:
                read.add((concept, row["source"]))
                pixels = read_picture(row["image"])
                self._drawings[numbers[concept]].append(pixels)

    def page(self, random: np.random.Generator, concepts: list[int]) -> Image.Image:
        """Draws a page with a drawing of each concept, next to each other."""
        page = Image.new("RGB", (SIDE * len(concepts), SIDE), "white")
        for place, concept in enumerate(concepts):
            drawings = self._drawings[concept]
            drawing = Image.fromarray(drawings[random.integers(len(drawings))])
            size = int(random.integers(72, SIDE))
            left, top = random.integers(0, SIDE - size, 2).tolist()
            drawing = drawing.resize((size, size))
            mask = drawing if drawing.mode == "RGBA" else None
            page.paste(drawing, (place * SIDE + left, top), mask)
        page.putpixel((0, 0), tuple(random.integers(128, 256, 3).tolist()))
        return page


def encode(page: Image.Image, ending: str) -> bytes:
    """Returns the file of a page."""
    file = io.BytesIO()
    page.save(file, **{"format": ending, **FORMATS[ending]})
    return file.getvalue()


def folder_name(each: DatacompSet) -> str:
    """Returns the name of a set's folder, by which CLIP_benchmark knows its task."""
    if each.metric == "mean_recall@1":
        return each.folders[0]  # wds_flickr30k, wds_mscoco_captions
    return f"{each.evaluator}_test"


def write_raw(raw: pathlib.Path, drawings: Drawings, count: int) -> None:
    """Writes RAW/SET for each set but WinoGAViL, for the exporter: pictures, set.json.

    Args:
      raw: folder to write.
      drawings: the drawings and their names.
      count: number of pictures of a set.
    """
    for seed, each in enumerate(SCORED):
        if not each.task:
            write_set(raw / folder_name(each), drawings, count, each, seed)
    write_set(raw / f"wds_{MULTILABEL}", drawings, count, None, len(SCORED))


def write_set(
    folder: pathlib.Path,
    drawings: Drawings,
    count: int,
    each: DatacompSet | None,
    seed: int,
) -> None:
    """Writes one set; `each` is None for the set of several labels, of 20 classes."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    retrieval = each is not None and not each.classes
    classes = count if retrieval else each.classes if each else 20
    chosen = random.permutation(len(drawings.names))[:classes]
    if retrieval:
        labels = np.arange(count)[:, None]
    elif each:
        labels = random.integers(0, classes, (count, 1))
        labels[:classes, 0] = random.permutation(classes)[:count]  # all, if they fit
    else:
        labels = np.stack([random.permutation(classes)[:2] for _ in range(count)])
    names = [drawings.names[concept] for concept in chosen]
    pictures = []
    for number, row in enumerate(labels):
        ending = [*FORMATS][number % len(FORMATS)]
        page = drawings.page(random, chosen[row].tolist())
        pictures.append(f"{number:05}.{ending}")
        (folder / pictures[-1]).write_bytes(encode(page, ending))
    described = {
        "type": "classification",
        "pictures": pictures,
        "classes": names,
        "templates": TEMPLATES,
        "labels": labels[:, 0].tolist(),
        "metadata": [],
    }
    if retrieval:
        described["type"] = "retrieval"
        described["labels"] = [[t.format(c=n) for t in TEMPLATES] for n in names]
    elif each is None:
        described["type"] = "multilabel"
        several = np.zeros((count, classes), np.float32)
        several[np.arange(count)[:, None], labels] = 1
        described["labels"] = several.tolist()
    elif each.groups:
        described["metadata"] = random.integers(0, 5, (count, 1)).tolist()
    (folder / "set.json").write_text(json.dumps(described))


def write_cues(folder: pathlib.Path, drawings: Drawings, count: int) -> None:
    """Writes WinoGAViL's files: cues with three right ones of twelve candidates."""
    random = np.random.default_rng(len(SCORED) + 1)
    folder.mkdir(parents=True)
    chosen = random.permutation(len(drawings.names))[:count].tolist()
    lines = ["ID,cue,candidates,associations"]
    for number in range(count):
        candidates = random.permutation(count)[:CUES].tolist()
        cue = drawings.names[chosen[candidates[0]]].replace('"', "'")
        lists = (
            json.dumps([f"p{i}" for i in part]).replace('"', '""')
            for part in (random.permutation(candidates).tolist(), candidates[:3])
        )
        lines.append(",".join([str(number), f'"{cue}"', *(f'"{t}"' for t in lists)]))
    (folder / "winogavil_dataset.csv").write_text("\n".join(lines) + "\n")
    with zipfile.ZipFile(folder / "winogavil_images.zip", "w") as archive:
        for number, concept in enumerate(chosen):
            picture = encode(drawings.page(random, [concept]), "jpg")
            archive.writestr(f"winogavil_images/p{number}.jpg", picture)
