"""Pairs in HTML pages: the picture and the `alt` of every `<img>`.

A page of a crawl may be an attack: lexbor's tree of 39 KB of unclosed `<font>` took 735
MiB, and its tree of 100,000 nested `<div>` took over 12 s. So a linear-time scan cuts
out the `<img>` tags, as a browser's tokenizer does, and lexbor parses each tag alone.
"""

import base64
import binascii
import codecs
import collections
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser

from data.sources.charsets import codec_of
from data.sources.config import SourceConfig
from data.sources.files import (
    MAX_IMAGE_BYTES,
    RawPair,
    SourceShard,
    list_files,
    read_inside,
)
from data.sources.image_addresses import Fields, is_embedded, list_candidates
from data.sources.warcs import MAX_PAGE_BYTES, read_warc

PAGES_A_SHARD = 1000
MAX_IMAGES = 10_000
MAX_ATTRIBUTES = 200
MAX_CANDIDATES = 20  # of one picture

_DECLARED = re.compile(
    rb"<meta[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.I
)
_ATTRIBUTE = (
    r"""[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"'][^\s>]*+))?+"""
)
_ATTRIBUTES = re.compile(_ATTRIBUTE)
_OPENING = re.compile(r"<(?:!--|[!?/]|[a-z])", re.I)
_TAG = re.compile(rf"<([a-z][^\s/>]*+)(?:[\s/]++|{_ATTRIBUTE})*+>", re.I)
_RAW = {
    name: re.compile(f"</{name}(?=[\\s/>])", re.I)
    for name in (
        *("script", "style", "textarea", "title"),
        *("xmp", "iframe", "noembed", "noframes"),
    )
}
TAGS = ("img", "base", "picture", "source")

# (image, url, alt_text) of an <img>
Row = tuple[bytes | None, str | None, str]


class HtmlSource:
    """HTML pages, and WARC files of them, perhaps gzipped.

    A shard is a WARC file, or the pages `files` of the folder `path`.
    """

    def __init__(self, config: SourceConfig) -> None:
        """Stores the config; reads nothing yet."""
        self.config = config

    def list_shards(self) -> list[SourceShard]:
        """Lists the WARC files, then the pages, up to PAGES_A_SHARD in a shard."""
        warc = (".warc", ".warc.gz")
        suffixes = (".html", ".htm", ".xhtml", *warc)
        root, names = list_files(self.config, suffixes, recursive=True)
        pages = [name for name in names if not name.lower().endswith(warc)]
        shards = [
            SourceShard(name, os.path.join(root, name))
            for name in names
            if name.lower().endswith(warc)
        ]
        for start in range(0, len(pages), PAGES_A_SHARD):
            part = tuple(pages[start : start + PAGES_A_SHARD])
            shards.append(SourceShard(f"{part[0]} ... {part[-1]}", root, files=part))
        return shards

    def read(
        self, shard: SourceShard, drops: collections.Counter[str]
    ) -> Iterator[RawPair | None]:
        """Yields the pairs of a shard; a WARC file gives URLs and embedded pictures.

        A row is an <img> of a page, or a page that cannot be read.
        """
        rows = self._read_files if shard.files else self._read_warc
        for row in rows(shard, drops):
            yield row and RawPair(*row, self.config.language)

    def _read_files(
        self, shard: SourceShard, drops: collections.Counter[str]
    ) -> Iterator[Row | None]:
        """Yields the rows of HTML files; all must lie inside the root folder."""
        base_url, root = self.config.base_url, pathlib.Path(shard.path)
        for name in shard.files:
            page = read_inside(root, name, drops)
            if page is None:
                yield None
                continue
            url = urllib.parse.urljoin(base_url, urllib.parse.quote(os.fsencode(name)))
            local = (root, (root / name).parent)
            yield from read_page(page, "", url if base_url else "", local, drops)

    def _read_warc(
        self, shard: SourceShard, drops: collections.Counter[str]
    ) -> Iterator[Row | None]:
        """Yields the rows of the HTML responses of a WARC file."""
        for page in read_warc(shard.path):
            if isinstance(page, str):
                drops[page] += 1
                yield None
            else:
                yield from read_page(page.body, page.charset, page.url, None, drops)


def decode_page(page: bytes, charset: str = "") -> str:
    """Decodes a page by its byte-order mark, else a declared charset, else as UTF-8.

    A charset of the server precedes one in a <meta> tag of the first 1,024 bytes. A
    charset is a label of the WHATWG Encoding Standard; one that is none is ignored.

    Args:
      page: bytes of the page.
      charset: charset that the server declared; empty if none.

    Returns:
      The text, with U+FFFD for bytes that cannot be decoded.
    """
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if page.startswith(mark):
            return page[len(mark) :].decode(encoding, "replace")
    codec = codec_of(charset)
    if codec is None and (declared := _DECLARED.search(page[:1024])):
        codec = codec_of(declared[1].decode())
        if codec and codec.startswith("utf-16"):  # else the tag could not be read
            codec = "utf-8"
    return page.decode(codec or "utf-8", "replace")


def image_tags(page: str) -> Iterator[str]:
    """Finds the tags of pictures and base URLs in a page, in linear time.

    They are `<img>` and `<base>`, and the `<picture>` and `<source>` around them.

    Tags inside comments, scripts, titles and similar elements are ignored. A tag, a
    comment or a script that never ends hides the rest of the page, as in a browser.

    Args:
      page: text of the page.

    Yields:
      The tags as they are written.
    """
    position = 0
    while opening := _OPENING.search(page, position):
        start = opening.start()
        if opening[0] == "<!--":
            position = page.find("-->", start + 2) + 3
        elif opening[0][1] in "!?/":
            position = page.find(">", start) + 1
            if position and page[start : start + 9].lower() == "</picture":
                yield "</picture>"
        elif tag := _TAG.match(page, start):
            name, position = tag[1].lower(), tag.end()
            if name in TAGS:
                yield tag[0]
            elif name in _RAW:
                closing = _RAW[name].search(page, position)
                position = closing.start() if closing else 0
        else:
            return
        if position <= start:  # it never ends
            return


def read_page(
    page: bytes,
    charset: str,
    url: str,
    local: tuple[pathlib.Path, pathlib.Path] | None,
    drops: collections.Counter[str],
) -> Iterator[Row | None]:
    """Reads the pairs of one page.

    Args:
      page: bytes of the page.
      charset: charset that the server declared; empty if none.
      url: URL of the page; empty if unknown.
      local: folders in which to look for the pictures: the root folder, for paths that
        start with "/", and the page's folder, for other paths. None reads no files.
      drops: counter of the reasons why pages and pictures give no pair.

    Yields:
      (image, url, alt_text) of each usable <img> that has an `alt`, even an empty one.
        Image or url or both may be None. None for every other <img> and for a page
        that is not read.
    """
    if len(page) > MAX_PAGE_BYTES:
        drops["page too large"] += 1
        yield None
        return
    base, count = None, 0
    around: list[Fields] | None = None  # the <source> of the <picture> that is open
    for tag in image_tags(decode_page(page, charset)):
        name = tag[1:].partition(">")[0].split(maxsplit=1)[0].rstrip("/").lower()
        if name in ("picture", "/picture"):
            around = [] if name == "picture" else None
            continue
        count += 1
        fields = _attributes(tag) if count <= MAX_IMAGES else None
        if name == "base":  # the first one that has an address
            base = (fields or {}).get("href") if base is None else base
        elif name == "source":
            if around is not None and fields:
                around.append(fields)
        elif count > MAX_IMAGES:
            drops["too many images on a page"] += 1
            yield None
        elif fields is None:
            drops["too many attributes"] += 1
            yield None
        elif "alt" not in fields:
            drops["no alt"] += 1
            yield None
        elif "\ufffd" in (fields["alt"] or ""):
            drops["undecodable text"] += 1
            yield None
        else:
            addresses = list_candidates(fields, around or ())
            picture = _picture(addresses, base or "", url, local, drops)
            yield picture and (*picture, fields["alt"] or "")


def _attributes(tag: str) -> dict[str, str | None] | None:
    """Returns the attributes of one tag; None if it has more than MAX_ATTRIBUTES."""
    for count, _ in enumerate(_ATTRIBUTES.finditer(tag)):
        if count > MAX_ATTRIBUTES:
            return None
    node = LexborHTMLParser(tag).css_first("img, base, source")
    return node.attributes if node else {}


def _picture(
    addresses: list[str],
    base: str,
    url: str,
    local: tuple[pathlib.Path, pathlib.Path] | None,
    drops: collections.Counter[str],
) -> tuple[bytes | None, str | None] | None:
    """Returns (bytes, URL) of the picture of an <img>, or None if it is dropped.

    It is the first of the addresses whose file is there, else the first one. Bytes are
    None unless the picture is embedded or in a local file. The URL is the address
    joined to the page's URL; it is None unless its scheme is HTTP or HTTPS.
    """
    if not addresses:
        drops["no address"] += 1
        return None
    if is_embedded(addresses[0]):
        return _embedded(addresses[0], drops)
    reasons: list[collections.Counter[str]] = []
    served: list[str] = []
    for address in addresses[: MAX_CANDIDATES if local else 1]:
        reasons.append(collections.Counter())
        try:
            target = urllib.parse.urljoin(base, _with_slashes(address))
            parts = urllib.parse.urlsplit(target)
            absolute = urllib.parse.urljoin(url, target)
            scheme = urllib.parse.urlsplit(absolute).scheme
        except ValueError:
            reasons[-1]["bad url"] += 1
            continue
        if scheme in ("http", "https"):
            served.append(absolute)
        if local and not parts.scheme and not parts.netloc:
            root, folder = local
            path = urllib.parse.unquote(parts.path)
            place = root / path.lstrip("/") if path.startswith("/") else folder / path
            image = read_inside(root, str(place.absolute()), reasons[-1])
            if image is not None:
                return image, absolute if scheme in ("http", "https") else None
    if served:
        return None, served[0]
    if reasons[0]:
        drops.update(reasons[0])
        return None
    return None, None


def _embedded(
    source: str, drops: collections.Counter[str]
) -> tuple[bytes, None] | None:
    header, _, content = source.partition(",")
    if len(content) > MAX_IMAGE_BYTES or not header.lower().endswith(";base64"):
        drops["data: url not read"] += 1
        return None
    try:
        packed = "".join(urllib.parse.unquote(content).split()).rstrip("=")
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True), None
    except (binascii.Error, ValueError):
        drops["data: url not read"] += 1
        return None


def _with_slashes(address: str) -> str:
    """Replaces backslashes before the query by slashes, as browsers do.

    Tabs and line breaks inside of an address do not count.
    """
    address = re.sub(r"[\t\n\r]", "", address)
    end = next((i for i, c in enumerate(address) if c in "?#"), len(address))
    return address[:end].replace("\\", "/") + address[end:]
