"""Chooses thresholds of the near-duplicate detectors, from augmented pictures.

The paper's threshold of 0.975 comes from human ratings and from synthetic pairs with
random augmentations (arXiv 2102.05918, Appendix A). This module makes only synthetic
pairs. A threshold is valid for one model and one type of pictures.
"""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from align_jax.errors import InputError
from align_jax.pictures import PictureError, lay_on_white, read_picture
from data.pictures.images import describe_images
from data.pictures.near_duplicates import NearDuplicates, hash_distances

# Function from the files of N pictures to (N, D) float32 unit vectors.
Embed = Callable[[list[bytes]], np.ndarray]

LEAST_PICTURES = 8


def crop(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Cuts off up to a tenth at each edge."""
    left, top, right, bottom = random.uniform(0, 0.1, 4)
    width, height = picture.size
    edges = left * width, top * height, (1 - right) * width, (1 - bottom) * height
    return picture.crop(tuple(round(edge) for edge in edges))


def resize(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Scales both sides by 0.5 to 0.9."""
    scale = random.uniform(0.5, 0.9)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def compress(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Encodes as JPEG of quality 20 to 80 and decodes again."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(random.integers(20, 81)))
    return Image.fromarray(read_picture(file.getvalue()))


def flip(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Swaps left and right."""
    return ImageOps.mirror(picture)


def recolour(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Changes brightness, contrast and saturation by up to 30 %."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(random.uniform(0.7, 1.3))
    return picture


def write_over(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Writes a word over the picture, an eighth of its height tall."""
    picture = picture.copy()
    width, height = picture.size
    place = random.uniform(0, 0.3) * width, random.uniform(0, 0.85) * height
    font = ImageFont.load_default(max(6, height // 8))
    colour = tuple(int(value) for value in random.integers(0, 256, 3))
    ImageDraw.Draw(picture).text(place, "example.com", colour, font)
    return picture


AUGMENTATIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "crop": crop,
    "resize": resize,
    "jpeg": compress,
    "flip": flip,
    "colour": recolour,
    "text": write_over,
}


def calibrate(
    embed: Embed | None,
    images: list[bytes],
    seed: int = 0,
    precision: float = 0.99,
    clusters: int = 4096,
    nearest: int = 10,
    share: int = 3,
) -> list[dict]:
    """Chooses each detector's threshold and measures it on augmented pictures.

    Half of the pictures act as evaluation images. Positives are augmented copies of
    them. Negatives are the other pictures, plain and with the same augmentations. The
    measured precision holds if copies and others are about equally frequent; it falls
    if copies are rarer. `false_positive_rate` does not depend on that. The loosest
    threshold that reaches `precision` is chosen on one half of the queries. The table
    measures the other half, so its precision may differ. Transparent pictures are laid
    on white.

    Args:
      embed: embedding function of a tower; None measures the perceptual hash alone.
      images: files of at least 8 different pictures.
      seed: seed of the split, the augmentations and k-means.
      precision: precision that a threshold must reach.
      clusters: number of k-means clusters; see `NearDuplicates.build`.
      nearest: number of clusters that a picture belongs to.
      share: number of clusters that two compared pictures must share.

    Returns:
      A row for each detector ("hash", "embedding") and each augmentation or "all":
      detector, augmentation, threshold, positives, negatives, precision, recall and
      false_positive_rate. A picture is marked as a near-duplicate if the distance of
      its hash is at most the threshold, or the cosine of its embedding is greater. If
      no threshold reaches the precision, the threshold is None and no picture is
      marked. If no picture is marked, the precision is None.

    Raises:
      InputError: fewer than 8 pictures are given, or one cannot be decoded.
    """
    if len(images) < LEAST_PICTURES:
        raise InputError(
            f"found {len(images)} pictures, wanted at least {LEAST_PICTURES} to"
            " calibrate"
        )
    trial = make_trial(images, seed)
    hashes = _hash(trial.indexed)
    scores = {"hash": -hash_distances(_hash(trial.queries), hashes)}
    if embed is not None:
        known = embed(trial.indexed)
        sample = np.concatenate([known, embed(trial.others)])
        index = NearDuplicates.build(
            known, sample, clusters=clusters, nearest=nearest, share=share, seed=seed
        )
        scores["embedding"] = index.query(embed(trial.queries))[0]
    return [
        row
        for detector, found in scores.items()
        for row in measure_detector(detector, found, trial, precision)
    ]


@dataclasses.dataclass(frozen=True)
class Trial:
    """Pictures on which a detector must separate copies from others; PNG files.

    Attributes:
      indexed: files that act as evaluation images.
      others: files of the other half of the pictures.
      queries: N files to compare with the indexed ones.
      augmentation: (N,) name of each query's augmentation, "plain" for none.
      positive: (N,) bool, whether a query is a copy of an indexed picture.
      chosen_on: (N,) bool, whether a query is used to choose the threshold.
    """

    indexed: list[bytes]
    others: list[bytes]
    queries: list[bytes]
    augmentation: np.ndarray
    positive: np.ndarray
    chosen_on: np.ndarray


def make_trial(images: list[bytes], seed: int) -> Trial:
    """Splits pictures and applies every augmentation to each; the seed decides all."""
    pictures = [_open(image, i) for i, image in enumerate(images)]
    order = np.random.default_rng(seed).permutation(len(pictures))
    pictures = [pictures[i] for i in order]
    half = len(pictures) // 2
    plain = [_png(picture) for picture in pictures]
    queries, kinds, numbers = [], [], []  # numbers: the picture of each query
    for number, picture in enumerate(pictures):
        for way, (kind, augment) in enumerate(AUGMENTATIONS.items()):
            random = np.random.default_rng([seed, int(order[number]), way])
            queries.append(_png(augment(picture, random)))
            kinds.append(kind)
            numbers.append(number)
    queries += plain[half:]
    kinds += ["plain"] * (len(plain) - half)
    numbers += range(half, len(plain))
    shown = np.array(numbers)
    return Trial(
        indexed=plain[:half],
        others=plain[half:],
        queries=queries,
        augmentation=np.array(kinds),
        positive=shown < half,
        chosen_on=shown % 2 == 0,
    )


def measure_detector(
    detector: str, scores: np.ndarray, trial: Trial, precision: float
) -> list[dict]:
    """Chooses a threshold and measures it; returns rows as `calibrate` does.

    Args:
      detector: "hash" or "embedding".
      scores: (N,) scores of the trial's queries; greater means more alike.
      trial: pictures that the scores belong to.
      precision: precision that the threshold must reach.
    """
    chosen_on = trial.chosen_on
    least = least_score(scores[chosen_on], trial.positive[chosen_on], precision)
    marked = np.zeros(len(scores), bool)
    threshold: float | None = None
    if least is not None:
        marked = scores >= least
        threshold = int(-least)
        if detector == "embedding":  # a near-duplicate's cosine is greater
            threshold = float(np.nextafter(np.float32(least), np.float32(-1)))
    rows = []
    for name in (*AUGMENTATIONS, "all"):
        part = ~chosen_on & ((trial.augmentation == name) | (name == "all"))
        row = {"detector": detector, "augmentation": name, "threshold": threshold}
        rows.append(row | _measure(marked[part], trial.positive[part]))
    return rows


def least_score(
    scores: np.ndarray, positive: np.ndarray, precision: float
) -> float | None:
    """Returns the least score that reaches the precision if used as a threshold.

    A threshold marks all scores that are equal or greater.

    Args:
      scores: (N,) scores; greater means more alike.
      positive: (N,) bool, whether a score belongs to a copy.
      precision: lower bound of marked positives / marked.

    Returns:
      One of the scores, or None if none reaches the precision.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # among equals
    enough = last & (hits >= precision * np.arange(1, len(order) + 1))
    return scores[order][np.flatnonzero(enough)[-1]] if enough.any() else None


def _measure(marked: np.ndarray, positive: np.ndarray) -> dict:
    hits = int((marked & positive).sum())
    positives, negatives = int(positive.sum()), int((~positive).sum())
    return {
        "positives": positives,
        "negatives": negatives,
        "precision": hits / int(marked.sum()) if marked.any() else None,
        "recall": hits / positives,
        "false_positive_rate": int((marked & ~positive).sum()) / negatives,
    }


def _hash(images: list[bytes]) -> np.ndarray:
    """Returns perceptual hashes (N,) int64, as the image stage computes them."""
    names = [str(i) for i in range(len(images))]
    return describe_images(names, [*images]).column("phash").to_numpy()


def _open(image: bytes, place: int) -> Image.Image:
    try:
        return lay_on_white(Image.fromarray(read_picture(image)))
    except PictureError as error:
        raise InputError(f"picture {place} cannot be decoded ({error})") from error


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
