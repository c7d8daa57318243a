"""Reads ARO (arXiv 2210.01936): pictures, each with its caption and wrong ones.

Relation and attribution show boxes in pictures of Visual Genome. They are read from the
files of https://github.com/mertyg/vision-language-models-are-bows

    DIR/visual_genome_relation.json      list of {"image_path", "bbox_x", "bbox_y",
                                         "bbox_w", "bbox_h", "true_caption",
                                         "false_caption", "relation_name"}
    DIR/visual_genome_attribution.json   the same, with a list "attributes" of two
    DIR/images/                          the pictures

or from a snapshot of the hub, such as `gowitheflow/ARO-Visual-Relation`, whose Parquet
files have the columns `image`, `bbox` (x, y, w and h), the captions, and
`relation_name` or `attributes`.

The order sets have four more captions, with the words in another order. The code of the
authors draws other orders in each evaluation. Snapshots that hold one drawing are
`gowitheflow/ARO-COCO-order` and `gowitheflow/ARO-Flickr-Order`.
"""

import io
import json
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from align_jax import pictures as picture_files
from align_jax import places
from align_jax.errors import InputError
from align_jax.input.hub_cache import find_snapshot
from align_jax.input.selection_set import (
    SelectionSet,
    as_picture,
    as_text,
    check_pictures,
    list_parquet,
    read_columns,
    stream_rows,
)

CAPTIONS = ("true_caption", "false_caption")
ORDERS = ("correct_caption", *(f"hard_text_{number}" for number in range(1, 5)))
RELATION, ATTRIBUTES = "relation_name", "attributes"
# The authors leave out relations of which the wrong caption is true, too, and pairs of
# attributes with fewer instances.
SYMMETRIC = pathlib.Path(__file__).with_name("aro_relations.json")
LEAST = 25

Box = tuple[int, int, int, int]  # left, top, right and bottom, in pixels


class Instance(NamedTuple):
    """A box in a picture.

    Attributes:
      captions: the right caption and the wrong one.
      box: the part of the picture that is shown.
      group: the relation, or the two attributes.
    """

    captions: list[str]
    box: Box
    group: str


def read_relation(directory: str) -> SelectionSet:
    """Reads the relations; the parts are those that are not symmetric.

    Args:
      directory: path or URL of the authors' folder, or of a snapshot.

    Raises:
      InputError: a file or a picture is missing, an instance has another form, or all
        relations are symmetric.
    """
    symmetric = json.loads(SYMMETRIC.read_text(encoding="utf-8"))["symmetric"]
    instances, read = _open(directory, "relation", RELATION)
    parts = {
        name: rows for name, rows in _group(instances).items() if name not in symmetric
    }
    if not parts:
        raise InputError(f"{directory} has symmetric relations only")
    return _make_set(instances, read, parts)


def read_attribution(directory: str) -> SelectionSet:
    """Reads the attributes; the parts are the pairs with 25 instances or more.

    Args:
      directory: path or URL of the authors' folder, or of a snapshot.

    Raises:
      InputError: a file or a picture is missing, an instance has another form, or all
        pairs have fewer instances.
    """
    instances, read = _open(directory, "attribution", ATTRIBUTES)
    parts = {n: rows for n, rows in _group(instances).items() if len(rows) >= LEAST}
    if not parts:
        raise InputError(f"{directory} has no pair of attributes {LEAST} times")
    return _make_set(instances, read, parts)


def read_order(directory: str) -> SelectionSet:
    """Reads the caption of each picture, and four with its words in another order.

    Args:
      directory: path or URL of the snapshot.

    Raises:
      InputError: the Parquet files are missing, or one is damaged or lacks a column.
    """
    paths = list_parquet(directory)
    captions = read_columns(paths, ORDERS)
    rows = np.arange(len(captions))[:, None]  # (N, 1)
    return SelectionSet(rows, captions, lambda: _stream_pictures(paths, "images"))


def _open(
    directory: str, name: str, group: str
) -> tuple[list[Instance], Callable[[], Iterable[bytes]]]:
    """Returns the instances, and a function that yields the whole picture of each.

    Args:
      directory: path or URL of the authors' folder, or of a snapshot.
      name: part of the name of the authors' file.
      group: field of the relation or of the attributes.
    """
    folder = find_snapshot(directory)
    if places.is_folder(os.path.join(folder, "data")):
        paths = list_parquet(folder)
        rows = stream_rows(paths, (*CAPTIONS, group, "bbox"))
        found = [_parse(row, row["bbox"], "", group, where) for where, row in rows]
        return found, lambda: _stream_pictures(paths, "image")
    path = os.path.join(folder, f"visual_genome_{name}.json")
    entries = places.read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"{path} holds a {type(entries).__name__}; wanted a list")
    found, files = [], list[str]()
    for number, entry in enumerate(entries):
        where = f"entry {number} of {path}"
        found.append(_parse(entry, entry, "bbox_", group, where))
        files.append(as_text(entry.get("image_path"), where))
    images = os.path.join(folder, "images")
    check_pictures(images, {*files})
    return found, lambda: (
        picture_files.read_file(os.path.join(images, file)) for file in files
    )


def _stream_pictures(paths: list[str], column: str) -> Iterator[bytes]:
    """Yields the pictures of Parquet files; raises InputError for an absent one."""
    for where, row in stream_rows(paths, [column]):
        yield as_picture(row[column], f"{where} has no bytes in {column}")


def _parse(entry: Any, box: Any, prefix: str, group: str, where: str) -> Instance:
    """Reads an instance.

    Args:
      entry: the captions and the group.
      box: the box's position and size, as x, y, w and h.
      prefix: first part of these four names.
      group: field of the relation or of the attributes.
      where: place of the instance, for messages.

    Raises:
      InputError: a field is missing or of another type.
    """
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} is {entry!a}; wanted an object")
    captions = [as_text(entry.get(name), where) for name in CAPTIONS]
    names = entry.get(group)
    names = names if isinstance(names, list) else [names]
    texts = [as_text(name, f"{group} of {where}") for name in names]
    name = "_".join(texts)
    if not name.strip(" _"):
        raise InputError(f"{group} of {where} is {entry.get(group)!r}; wanted a name")
    return Instance(captions, _parse_box(box, prefix, where), name)


def _parse_box(box: Any, prefix: str, where: str) -> Box:
    """Returns a box, rounded as Pillow's `crop` does; raises InputError as `_parse`."""
    found: Mapping[str, Any] = box if isinstance(box, Mapping) else {}
    numbers: list[Any] = [found.get(f"{prefix}{name}") for name in "xywh"]
    try:
        x, y, w, h = numbers
        left, top, right, bottom = (round(n) for n in (x, y, x + w, y + h))
    except (TypeError, ValueError, OverflowError):  # no numbers, NaN, infinite
        left = top = right = bottom = 0
    area = (right - left) * (bottom - top)
    if left < right and top < bottom and area <= picture_files.MAX_PIXELS:
        return left, top, right, bottom
    raise InputError(f"{where} has the box {numbers}; wanted x, y, width and height")


def _group(instances: list[Instance]) -> dict[str, np.ndarray]:
    """Returns the numbers of the instances of each group, by its name."""
    found: dict[str, list[int]] = {}
    for number, instance in enumerate(instances):
        found.setdefault(instance.group, []).append(number)
    return {name: np.array(numbers) for name, numbers in sorted(found.items())}


def _make_set(
    instances: list[Instance],
    read: Callable[[], Iterable[bytes]],
    parts: dict[str, np.ndarray],
) -> SelectionSet:
    """Makes the set of the boxes.

    Spaces in a part's name become underscores, unless another part then has that name.

    Args:
      instances: boxes with their captions.
      read: function that yields the whole picture of each.
      parts: numbers of the instances of each part, by name.
    """
    count = Counter(name.replace(" ", "_") for name in parts)
    named = {
        name if count[short := name.replace(" ", "_")] > 1 else short: rows
        for name, rows in parts.items()
    }

    def cut() -> Iterator[bytes]:
        for number, (instance, picture) in enumerate(
            zip(instances, read(), strict=True)
        ):
            yield cut_picture(picture, instance.box, f"the picture of entry {number}")

    return SelectionSet(
        rows=np.arange(len(instances))[:, None],  # (N, 1)
        captions=[instance.captions for instance in instances],
        read=cut,
        parts=named,
        right_first=False,
    )


def cut_picture(picture: bytes, box: Box, name: str) -> bytes:
    """Returns a part of a picture as a PNG file, black where it exceeds the picture.

    Args:
      picture: bytes of the picture's file.
      box: the part.
      name: name of the picture, for messages.

    Raises:
      InputError: the picture cannot be read, or the box lies outside of it.
    """
    whole = Image.fromarray(picture_files.read_picture(picture, name))
    left, top, right, bottom = box
    if left >= whole.width or top >= whole.height or right <= 0 or bottom <= 0:
        raise InputError(
            f"{name} is {whole.width} x {whole.height} pixels; its box {box} is outside"
        )
    file = io.BytesIO()
    whole.crop(box).save(file, "PNG", compress_level=1)
    return file.getvalue()
