"""Reads the drawings of the Open Clip Art Library, as Debian packages them.

The package `openclipart-png` holds the pictures. `openclipart-svg` holds the same
drawings with their authors' titles, descriptions and tags as RDF. All of it is in the
public domain.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterator
from pyexpat import version_info as expat_version
from xml.etree import ElementTree

from align_jax import places
from align_jax.errors import InputError

ROOT = pathlib.Path("/usr/share/openclipart")
PACKAGES = "openclipart-png openclipart-svg"
MANY_PICTURES = 10  # the paper's bound on the pictures of one text

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
    or newer, see `check_expat`) raises an error if entities expand the text a
    hundredfold. Entity declarations are allowed, because Illustrator writes them for
    its namespaces.

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


def check_expat() -> None:
    """Raises InputError if Python's XML parser can be exhausted by entities."""
    if expat_version < (2, 4, 1):
        found = ".".join(map(str, expat_version))
        raise InputError(
            f"Python's Expat is {found}, which entities can exhaust; wanted 2.4.1 or"
            " newer, as every supported Python brings"
        )


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())
