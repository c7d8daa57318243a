"""Chooses drawings of Open Clip Art whose texts describe them, and splits them.

More than half of the drawings have the title of a collection. A text that more than
`MANY_PICTURES` drawings share says nothing about one of them (arXiv 2102.05918, section
3), so it is removed, as are file names, addresses and numbers at the end of a text.

Two drawings that look alike are on the same side of a split: those whose files differ
in a number only, and those whose perceptual hashes differ in few bits.
"""

import collections
import dataclasses
import io
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from align_jax.pictures import PictureError, lay_on_white, make_thumbnail, read_file
from data.pictures.images import hash_greys, shrink
from data.samples.emoji_drawings import share
from data.samples.openclipart import MANY_PICTURES, Drawing

MANY_WORDS = 20  # the paper's bound on the words of a text
SIDE = 192  # pixels of a picture's longer side
LEAST_SIDE = 64  # pixels of a picture's shorter side, after the reduction to SIDE
NEAR_BITS = 4  # of 64; pictures whose hashes differ in no more bits look alike
SHARES = {"choose": 0.15, "report": 0.15}  # parts of the drawings; the rest is trained

ADDRESS = re.compile(
    r"\S+://\S+|\S+@\S+|\bwww\.\S+|\S+\.(?:svg|png|eps|wmf|ai)\b", re.I
)
NUMBER_AT_END = re.compile(r"[\s#.,:;-]*\(?\d[\w.]*\)?$")
WORD = re.compile(r"[^\W\d_]+")
# Openings of texts that name a collection or an author, and not what is drawn.
EMPTY_WORDS = re.compile(
    r"(clip ?art|part of|various|untitled|unnamed|drawing|image|created|svg)\b", re.I
)


@dataclasses.dataclass(frozen=True)
class CleanDrawing:
    """One drawing with texts that describe it.

    Attributes:
      url: path of the picture below the packages' folder, with slashes.
      texts: the title, then the description and the tags if they are clean, too.
      picture: PNG file, reduced to `SIDE` pixels; transparency is kept.
      phash: perceptual hash of the picture on white, see `hash_greys`.
    """

    url: str
    texts: tuple[str, ...]
    picture: bytes
    phash: int


def clean_text(text: str) -> str:
    """Returns a text without file names, addresses and a number at its end.

    The result is empty if nothing is left that describes a picture: no word, one Latin
    letter, an opening such as "Part of", or more than `MANY_WORDS` words.
    """
    text = unicodedata.normalize("NFKC", text).replace("_", " ")
    text = NUMBER_AT_END.sub("", ADDRESS.sub(" ", text).strip())
    text = " ".join(text.split()).strip(" .,;:-")
    words = WORD.findall(text)
    letter = all(len(word) == 1 and word.isascii() for word in words)
    if letter or len(words) > MANY_WORDS or EMPTY_WORDS.match(text):
        return ""
    return text


def choose_texts(drawings: Sequence[Drawing]) -> dict[str, tuple[str, ...]]:
    """Returns the clean texts by url, of the drawings that have a clean title."""
    cleaned = {
        drawing.url: [
            *dict.fromkeys(
                clean_text(text)
                for text in (drawing.title, drawing.description, drawing.tags)
            )
        ]
        for drawing in drawings
    }
    pictures = collections.Counter(
        folded
        for texts in cleaned.values()
        for folded in {text.casefold() for text in texts}
    )

    def describes(text: str) -> bool:
        return bool(text) and pictures[text.casefold()] <= MANY_PICTURES

    return {
        url: tuple(filter(describes, texts))
        for url, texts in cleaned.items()
        if describes(texts[0])
    }


def reduce_picture(drawing: Drawing) -> tuple[bytes, int] | str:
    """Reads and reduces a drawing's picture.

    Returns:
      The PNG file and the perceptual hash, or the reason why the picture is not used.
    """
    try:
        picture = make_thumbnail(read_file(drawing.picture), SIDE)
    except PictureError as error:
        return error.reason
    if min(picture.size) < LEAST_SIDE:
        return "small or narrow"
    grey = shrink(lay_on_white(picture))
    if grey.min() == grey.max():
        return "blank"
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue(), int(hash_greys([grey])[0])


def split_drawings(drawings: Sequence[CleanDrawing], seed: int) -> dict[str, list[int]]:
    """Splits drawings so that two that look alike are in the same split.

    Args:
      drawings: the drawings, in any order.
      seed: seed of the split.

    Returns:
      Indices of `drawings`, in ascending order, under "train" and the keys of `SHARES`.
      A hash of the seed and of a group's first url decides its split.
    """
    splits: dict[str, list[int]] = {name: [] for name in ("train", *SHARES)}
    for group in group_drawings(drawings):
        number = share(seed, "clipart", min(drawings[i].url for i in group))
        split, bound = "train", 0.0
        for name, part in SHARES.items():
            if bound <= number < bound + part:
                split = name
            bound += part
        splits[split] += group
    return {name: sorted(indices) for name, indices in splits.items()}


def group_drawings(drawings: Sequence[CleanDrawing]) -> list[list[int]]:
    """Returns the indices of drawings that look alike, directly or through others."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(drawings)
    hashes = np.array([d.phash for d in drawings], np.int64).view(np.uint64)
    first: dict[str, int] = {}
    stems = [re.sub(r"[\W\d_]+$", "", d.url.rpartition(".")[0]) for d in drawings]
    rows = [*range(count)]
    columns = [first.setdefault(stem, i) for i, stem in enumerate(stems)]
    for i in range(count):
        near = np.bitwise_count(hashes[i + 1 :] ^ hashes[i]) <= NEAR_BITS
        found = np.flatnonzero(near) + i + 1
        rows += [i] * len(found)
        columns += found.tolist()
    edges = coo_matrix((np.ones(len(rows), bool), (rows, columns)), (count, count))
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for i, label in enumerate(connected_components(edges, directed=False)[1]):
        groups[int(label)].append(i)
    return [*groups.values()]
