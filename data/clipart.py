"""Makes noisy raw pairs from two Debian packages: the Open Clip Art Library.

`openclipart-png` holds the pictures. `openclipart-svg` holds the same drawings with
their authors' titles, descriptions and tags as RDF. All of it is in the public domain.
The titles resemble alt-texts of a crawl: many name a collection, an author or a file.

    apt-get install openclipart-png openclipart-svg
    python -m data.clipart --out=DIR

writes DIR/summary.json (counts) and DIR/pairs/00000.parquet and so on. Each drawing
gives at most three raw pairs: title, description and tags. Their columns are `image`,
`alt_text`, `language` and `url`.
"""

import argparse
import collections
import pathlib
import sys

from align_jax import places
from align_jax.command_line import local_path
from align_jax.config import check_folder, claim_folder
from align_jax.errors import InputError, run_command
from align_jax.locks import locked
from data.records.stages import materialise
from data.samples.openclipart import (
    MANY_PICTURES,
    ROOT,
    Drawing,
    check_expat,
    list_pictures,
    read_drawings,
)

PICTURES_A_SHARD = 500


def write_pairs(
    folder: pathlib.Path, root: pathlib.Path, counts: collections.Counter
) -> None:
    """Writes the raw pairs to Parquet files of `PICTURES_A_SHARD` drawings each.

    Args:
      folder: output folder, which does not exist yet.
      root: folder of the packages' files.
      counts: counter that receives the numbers for the summary.

    Raises:
      InputError: a package is missing, or no drawing has a text.
    """
    import tqdm

    folder.mkdir()
    titles: collections.Counter[str] = collections.Counter()
    shard: list[Drawing] = []
    for drawing in tqdm.tqdm(read_drawings(root, counts), "clipart", disable=None):
        for name in ("title", "description", "tags"):
            counts[f"with_{name}"] += bool(getattr(drawing, name))
        titles[drawing.title.casefold()] += 1
        shard.append(drawing)
        if len(shard) == PICTURES_A_SHARD:
            _write_shard(folder, shard, counts)
            shard = []
    if shard:
        _write_shard(folder, shard, counts)
    if not counts["pairs"]:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"no drawing below {root} has a text ({found})")
    del titles[""]
    shared = (count for count in titles.values() if count > MANY_PICTURES)
    counts[f"title_shared_by_more_than_{MANY_PICTURES}"] = sum(shared)


def _write_shard(
    folder: pathlib.Path, drawings: list[Drawing], counts: collections.Counter
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("image", pa.binary()),
            ("alt_text", pa.string()),
            ("language", pa.string()),
            ("url", pa.string()),
        ]
    )
    rows = [
        {"image": image, "alt_text": text, "language": d.language, "url": d.url}
        for d in drawings
        for image in [places.read_bytes(d.picture)]
        for text in d.alt_texts
    ]
    # With an unbounded dictionary, a picture is stored once for all of its texts.
    pq.write_table(
        pa.Table.from_pylist(rows, schema),
        folder / f"{counts['shards']:05}.parquet",
        dictionary_pagesize_limit=2**30,
    )
    counts["pairs"] += len(rows)
    counts["shards"] += 1


def main() -> None:
    """Reads the flags; writes the pairs and the summary, unless the pairs exist."""
    parser = argparse.ArgumentParser(
        prog="python -m data.clipart", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, metavar="DIR")
    flags = parser.parse_args()
    check_expat()
    root = places.local_path(flags.root)
    list_pictures(root)
    config = {"root": str(flags.root), "pictures_a_shard": PICTURES_A_SHARD}
    check_folder(flags.out, config)
    pairs, summary = flags.out / "pairs", flags.out / "summary.json"
    counts: collections.Counter[str] = collections.Counter()

    def make(folder: pathlib.Path) -> None:
        write_pairs(folder, root, counts)
        places.write_json(summary, dict(counts))

    with locked(flags.out):
        claim_folder(flags.out, config)
        materialise(pairs, make)
    told = "the pairs are there, but no summary.json; remove them to write both again"
    found = places.read_text(summary) if summary.exists() else told
    print(f"{flags.out}: {found}")


if __name__ == "__main__":
    sys.exit(run_command("data.clipart", main))
