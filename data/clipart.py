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
import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterator
from pyexpat import version_info as expat_version
from xml.etree import ElementTree

from align_jax import places
from align_jax.command_line import local_path
from align_jax.config import check_folder, claim_folder
from align_jax.errors import InputError, run_command
from align_jax.locks import locked
from data.records.stages import materialise

ROOT = pathlib.Path("/usr/share/openclipart")
PICTURES_A_SHARD = 500
MANY_PICTURES = 10  # the paper's bound on the pictures of one text, for the summary
PACKAGES = "openclipart-png openclipart-svg"

# Language names that are not codes. Any other language that does not start with a code
# of two letters becomes None.
LANGUAGES = {"english": "en", "eng": "en"}
LANGUAGE = re.compile(r"([a-z]{2})(?![a-z/])")

# Errors of ElementTree for a file that is not XML or has an unknown encoding.
BROKEN = (ElementTree.ParseError, LookupError, ValueError)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One drawing: its PNG file and the texts of its author.

    Attributes:
      picture: the PNG file.
      url: the picture's path below the root, with slashes.
      title: title by the author; empty if there is none.
      description: description by the author; empty if there is none.
      tags: tags by the author, joined by commas; empty if there are none.
      language: code of two letters; None if unknown.
    """

    picture: pathlib.Path
    url: str
    title: str
    description: str
    tags: str
    language: str | None

    @property
    def alt_texts(self) -> list[str]:
        """The distinct non-empty texts of the drawing."""
        texts = dict.fromkeys([self.title, self.description, self.tags])
        return [text for text in texts if text]


def list_pictures(root: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Lists (SVG file, PNG file) of every drawing below a root, sorted by path.

    The SVG files decide which drawings exist; the PNG file of one may be missing.

    Raises:
      InputError: no SVG file exists, or one of the two packages is missing.
    """
    for kind in ("svg", "png"):
        if not (root / kind).is_dir():
            raise InputError(
                f"no folder {root / kind}; get it by `apt-get install {PACKAGES}`,"
                " or name another folder by --root=DIR"
            )
    svgs = sorted((root / "svg").rglob("*.svg"), key=lambda path: path.as_posix())
    if not svgs:
        raise InputError(f"{root / 'svg'} holds no *.svg; wanted those of {PACKAGES}")
    pngs = [root / "png" / svg.relative_to(root / "svg") for svg in svgs]
    return [(s, p.with_suffix(".png")) for s, p in zip(svgs, pngs, strict=True)]


def read_drawings(root: pathlib.Path, counts: collections.Counter) -> Iterator[Drawing]:
    """Yields the drawings that have a picture and a text, sorted by path.

    Args:
      root: folder of the packages' files.
      counts: counter that receives the number of all drawings, as "drawings", and of
        the skipped drawings by reason.
    """
    for svg, png in list_pictures(root):
        counts["drawings"] += 1
        if not (svg.is_file() and png.is_file()):
            counts["no_picture"] += 1
            continue
        try:
            work = read_work(svg)
        except BROKEN:
            counts["broken_svg"] += 1
            continue
        if work is None:
            counts["no_metadata"] += 1
            continue
        tags = [_text(tag) for tag in work.findall(".//{*}subject//{*}li")]
        language = _text(work.find("{*}language")).lower()
        code = LANGUAGE.match(language)
        drawing = Drawing(
            picture=png,
            url=png.relative_to(root).as_posix(),
            title=_text(work.find("{*}title")),
            description=_text(work.find("{*}description")),
            tags=", ".join(tag for tag in tags if tag),
            language=LANGUAGES.get(language) or (code[1] if code else None),
        )
        if not drawing.alt_texts:
            counts["no_text"] += 1
            continue
        yield drawing


def read_work(svg: pathlib.Path) -> ElementTree.Element | None:
    """Reads an SVG file up to its first RDF `Work`; returns None if it has none.

    Hostile XML cannot do harm: ElementTree opens no external entity, and Expat (2.4.1
    or newer, see `main`) raises an error if entities expand the text a hundredfold.
    Entity declarations are allowed, because Illustrator writes them for its namespaces.

    Raises:
      ParseError, LookupError, ValueError: the part that was read is not XML, or its
        encoding is unknown.
    """
    with places.opening(svg) as file:
        # The docstring says why hostile XML does no harm.
        for _, element in ElementTree.iterparse(file):  # noqa: S314
            if element.tag.endswith("}Work"):
                return element
    return None


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


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())


def main() -> None:
    """Reads the flags; writes the pairs and the summary, unless the pairs exist."""
    parser = argparse.ArgumentParser(
        prog="python -m data.clipart", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, metavar="DIR")
    flags = parser.parse_args()
    if expat_version < (2, 4, 1):
        found = ".".join(map(str, expat_version))
        raise InputError(
            f"Python's Expat is {found}, which entities can exhaust; wanted 2.4.1 or"
            " newer, as every supported Python brings"
        )
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
