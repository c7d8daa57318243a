"""Makes the raw pairs and evaluation sets of the bench of recipes.

The pictures are the quickstart's emoji (see `data.quickstart`) and clean drawings of
the Open Clip Art Library, with their titles, descriptions and tags:

    apt-get install openclipart-png openclipart-svg
    python -m data.recipes --out=DIR

writes DIR/pairs (raw pairs), DIR/evaluation (see `data.samples.recipe_splits`),
DIR/summary.json (counts) and DIR/ATTRIBUTION.md. Files that exist are kept.
`--root=FOLDER` names another folder with the packages' files, `png/` and `svg/`.
"""

import argparse
import collections
import concurrent.futures
import multiprocessing
import pathlib
import sys

from align_jax import places
from align_jax.command_line import local_path
from align_jax.config import check_folder, claim_folder
from align_jax.errors import InputError, run_command
from align_jax.locks import locked
from data.quickstart import ATTRIBUTION
from data.records.stages import materialise
from data.samples.clean_clipart import CleanDrawing, choose_texts, reduce_picture
from data.samples.emoji_drawings import draw_all, list_concepts
from data.samples.openclipart import ROOT, check_expat, list_pictures, read_drawings

CLIPART = """* Open Clip Art Library, released into the public domain by its artists,
  https://creativecommons.org/publicdomain/zero/1.0/. From Debian's packages
  `openclipart-png` and `openclipart-svg`; pictures reduced to 192 pixels.
"""


def read_clipart(
    root: pathlib.Path, counts: collections.Counter[str]
) -> list[CleanDrawing]:
    """Reads the clean drawings, each picture once, sorted by path.

    Args:
      root: folder of the packages' files.
      counts: counter that receives the number of all drawings and, by reason, of those
        that were skipped.

    Raises:
      InputError: a package is missing, or no drawing is clean.
    """
    import tqdm

    drawings = [*read_drawings(root, counts)]
    texts = choose_texts(drawings)
    counts["no_clean_title"] = len(drawings) - len(texts)
    drawings = [drawing for drawing in drawings if drawing.url in texts]
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive forks
    clean: dict[bytes, CleanDrawing] = {}
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
        reduced = pool.map(reduce_picture, drawings, chunksize=16)
        progress = tqdm.tqdm(reduced, "clipart", len(drawings), disable=None)
        for drawing, found in zip(drawings, progress, strict=True):
            if isinstance(found, str):
                counts[f"picture {found}"] += 1
            elif found[0] in clean:
                counts["the same picture again"] += 1
            else:
                url = drawing.url
                clean[found[0]] = CleanDrawing(url, texts[url], *found)
    if not clean:
        reasons = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"no drawing below {root} has a clean title ({reasons})")
    counts["clean drawings"] = len(clean)
    counts["clean texts"] = sum(len(drawing.texts) for drawing in clean.values())
    return [*clean.values()]


def main() -> None:
    """Reads the flags; writes the pairs and the evaluation sets, unless they exist."""
    parser = argparse.ArgumentParser(
        prog="python -m data.recipes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    config = {"seed": flags.seed}
    check_folder(flags.out, config)
    if all((flags.out / name).exists() for name in ("evaluation", "pairs")):
        print(f"{flags.out} holds the raw pairs and evaluation sets: nothing to do.")
        return
    check_expat()
    root = places.local_path(flags.root)
    list_pictures(root)
    with locked(flags.out):
        claim_folder(flags.out, config)
        _write(flags.out, root, flags.seed)


def _write(out: pathlib.Path, root: pathlib.Path, seed: int) -> None:
    """Writes the pairs and the evaluation sets that do not exist yet."""
    from data.samples.recipe_splits import write_evaluation, write_pairs

    counts: collections.Counter[str] = collections.Counter()
    clipart = read_clipart(root, counts)
    concepts = list_concepts()
    pictures = draw_all(concepts)
    places.write_text(out / "ATTRIBUTION.md", ATTRIBUTION + CLIPART)
    places.write_json(out / "summary.json", dict(counts))
    materialise(
        out / "evaluation",
        lambda folder: write_evaluation(folder, concepts, pictures, clipart, seed),
    )
    materialise(
        out / "pairs",
        lambda folder: write_pairs(folder, concepts, pictures, clipart, seed),
    )
    print(f"{len(concepts)} emoji and {len(clipart)} drawings, pairs and sets in {out}")


if __name__ == "__main__":
    sys.exit(run_command("data.recipes", main))
