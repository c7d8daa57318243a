"""Pairs in HTML pages: the `src` and `alt` of every `<img>`.

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

from align_jax import places
from data.sources.config import SourceConfig
from data.sources.files import (
    MAX_IMAGE_BYTES,
    RawPair,
    SourceShard,
    list_files,
    read_inside,
)

PAGES_A_SHARD = 1000
MAX_PAGE_BYTES = 10_000_000
MAX_IMAGES = 10_000
MAX_ATTRIBUTES = 200

# Names that pages declare, and the encodings browsers use for them (WHATWG Encoding).
CHARSETS = {
    "ascii": "cp1252",
    "us-ascii": "cp1252",
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "gb18030": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "sjis": "cp932",
    "euc-jp": "euc_jp",
    "iso-2022-jp": "iso2022_jp",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "koi8-r": "koi8_r",
    "koi8-u": "koi8_u",
    "tis-620": "cp874",
    "windows-874": "cp874",
    "macintosh": "mac_roman",
    **{f"windows-125{n}": f"cp125{n}" for n in range(9)},
    **{f"iso-8859-{n}": f"iso8859_{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15)},
    "iso-8859-9": "cp1254",
}

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
_LAZY = ("data-src", "data-original", "data-lazy-src")


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
    ) -> Iterator[RawPair]:
        """Yields the pairs of a shard; a WARC file gives URLs and embedded pictures."""
        rows = self._read_files if shard.files else _read_warc
        for image, url, text in rows(shard, drops):
            yield RawPair(image, url, text, self.config.language)

    def _read_files(
        self, shard: SourceShard, drops: collections.Counter[str]
    ) -> Iterator[tuple[bytes | None, str | None, str]]:
        """Yields (image, url, alt_text); all files must lie inside the root folder."""
        base_url, root = self.config.base_url, pathlib.Path(shard.path)
        for name in shard.files:
            page = read_inside(root, name, drops)
            if page is None:
                continue
            url = urllib.parse.urljoin(base_url, urllib.parse.quote(name))
            local = (root, (root / name).parent)
            yield from read_page(page, "", url if base_url else "", local, drops)


def _read_warc(
    shard: SourceShard, drops: collections.Counter[str]
) -> Iterator[tuple[bytes | None, str | None, str]]:
    """Yields (image, url, alt_text) of the HTML responses, up to a damaged record."""
    from warcio.archiveiterator import ArchiveIterator

    with places.opening(shard.path) as file:
        records = iter(ArchiveIterator(file))
        while True:
            try:
                record = next(records, None)
                if record is None:
                    return
                headers = record.http_headers
                kind = headers.get_header("Content-Type", "") if headers else ""
                if record.rec_type != "response" or "html" not in kind.lower():
                    continue
                url = record.rec_headers.get_header("WARC-Target-URI", "")
                page = record.content_stream().read(MAX_PAGE_BYTES + 1)
                if record.raw_stream.limit > 0 and len(page) <= MAX_PAGE_BYTES:
                    raise EOFError("the record is cut")
            except Exception:  # warcio does not document its errors
                drops["truncated warc"] += 1
                return
            charset = kind.lower().partition("charset=")[2].partition(";")[0]
            yield from read_page(page, charset, url, None, drops)


def decode_page(page: bytes, charset: str = "") -> str:
    """Decodes a page by its byte-order mark, else a declared charset, else as UTF-8.

    A charset of the server precedes one in a <meta> tag of the first 1,024 bytes. An
    unknown charset is read as UTF-8.

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
    declared = _DECLARED.search(page[:1024])
    name = charset or (declared[1].decode() if declared else "")
    return page.decode(CHARSETS.get(name.strip("\"' ").lower(), "utf-8"), "replace")


def image_tags(page: str) -> Iterator[str]:
    """Finds the `<img>` tags and the first `<base>` tag of a page, in linear time.

    Tags inside comments, scripts, titles and similar elements are ignored. A tag, a
    comment or a script that never ends hides the rest of the page, as in a browser.

    Args:
      page: text of the page.

    Yields:
      The tags as they are written.
    """
    position, based = 0, False
    while opening := _OPENING.search(page, position):
        start = opening.start()
        if opening[0] == "<!--":
            position = page.find("-->", start + 2) + 3
        elif opening[0][1] in "!?/":
            position = page.find(">", start) + 1
        elif tag := _TAG.match(page, start):
            name, position = tag[1].lower(), tag.end()
            if name == "img" or (name == "base" and not based):
                based |= name == "base"
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
) -> Iterator[tuple[bytes | None, str | None, str]]:
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
        Image or url or both may be None.
    """
    if len(page) > MAX_PAGE_BYTES:
        drops["page too large"] += 1
        return
    base, count = "", 0
    for tag in image_tags(decode_page(page, charset)):
        count += 1
        if count > MAX_IMAGES:
            drops["too many images on a page"] += 1
            continue
        fields = _attributes(tag)
        if tag[:5].lower() == "<base":
            base = (fields or {}).get("href") or ""
        elif fields is None:
            drops["too many attributes"] += 1
        elif "alt" not in fields:
            drops["no alt"] += 1
        elif "\ufffd" in (fields["alt"] or ""):
            drops["undecodable text"] += 1
        else:
            sources = (fields.get(name) for name in (*_LAZY, "src"))
            source = next((value.strip() for value in sources if value), "")
            picture = _picture(source, base, url, local, drops)
            if picture:
                yield *picture, fields["alt"] or ""


def _attributes(tag: str) -> dict[str, str | None] | None:
    """Returns the attributes of one tag; None if it has more than MAX_ATTRIBUTES."""
    for count, _ in enumerate(_ATTRIBUTES.finditer(tag)):
        if count > MAX_ATTRIBUTES:
            return None
    node = LexborHTMLParser(tag).css_first("img, base")
    return node.attributes if node else {}


def _picture(
    source: str,
    base: str,
    url: str,
    local: tuple[pathlib.Path, pathlib.Path] | None,
    drops: collections.Counter[str],
) -> tuple[bytes | None, str | None] | None:
    """Returns (bytes, URL) of the picture of a `src`, or None if it is dropped.

    Bytes are None unless the picture is embedded or in a local file. The URL is the
    `src` joined to the page's URL; it is None unless its scheme is HTTP or HTTPS.
    """
    if source[:5].lower() == "data:":
        return _embedded(source, drops)
    try:
        target = urllib.parse.urljoin(base, source)
        parts = urllib.parse.urlsplit(target)
        absolute = urllib.parse.urljoin(url, target)
        served = urllib.parse.urlsplit(absolute).scheme in ("http", "https")
    except ValueError:
        drops["bad url"] += 1
        return None
    image = None
    if local and source and not parts.scheme and not parts.netloc:
        root, folder = local
        path = urllib.parse.unquote(parts.path)
        place = root / path.lstrip("/") if path.startswith("/") else folder / path
        missing: collections.Counter[str] = collections.Counter()
        image = read_inside(root, str(place.absolute()), missing)
        if image is None and not served:
            drops.update(missing)
            return None
    return image, absolute if served else None


def _embedded(
    source: str, drops: collections.Counter[str]
) -> tuple[bytes, None] | None:
    header, _, content = source.partition(",")
    if len(content) > MAX_IMAGE_BYTES or not header.lower().endswith(";base64"):
        drops["data: url not read"] += 1
        return None
    try:
        return base64.b64decode(urllib.parse.unquote(content)), None
    except (binascii.Error, ValueError):
        drops["data: url not read"] += 1
        return None
