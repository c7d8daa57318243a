"""The HTML pages of WARC files, with their bodies unpacked."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import brotli
import zstandard

from align_jax import places

MAX_PAGE_BYTES = 10_000_000
MAX_WINDOW_BYTES = 2**23  # of zstd in HTTP, RFC 9659


class Page(NamedTuple):
    """A page as a server sent it.

    Attributes:
      body: bytes of the page, at most MAX_PAGE_BYTES + 1.
      charset: charset that the server declared; empty if none.
      url: URL of the page.
    """

    body: bytes
    charset: str
    url: str


def read_warc(path: str) -> Iterator[Page | str]:
    """Reads the HTML responses of a WARC file, up to a damaged record.

    The file may be gzipped, each record alone or all of them together.

    Yields:
      Pages, and reasons why a page, or the rest of a damaged file, cannot be read.
    """
    from warcio.archiveiterator import ArchiveIterator

    with places.opening(path) as file, _unpacking(file) as plain:
        records = iter(ArchiveIterator(plain))
        while True:
            try:
                record = next(records, None)
                page = record and _read_page(record)
            except Exception:  # warcio does not document its errors
                yield "truncated warc"
                return
            if record is None:
                return
            if page is not None:
                yield page


@contextlib.contextmanager
def _unpacking(file: IO[bytes]) -> Iterator[Any]:
    """Yields the file without its compression by gzip, if it has one."""
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not packed:
        yield file
        return
    with gzip.open(file) as plain:
        yield _Parts(plain)


class _Parts:
    """A gzipped file that gives all bytes before a cut.

    Attributes:
      plain: the opened file.
    """

    def __init__(self, plain: gzip.GzipFile) -> None:
        self.plain = plain

    def read(self, size: int) -> bytes:
        """Returns the next bytes, at most `size`; raises OSError at a cut.

        warcio would take an EOFError for the end of the file.
        """
        try:
            return self.plain.read1(size)
        except EOFError as error:
            raise OSError("the file is cut") from error


def _read_page(record: Any) -> Page | str | None:
    """Returns the page of a record, None if it is none, or why it cannot be read.

    Raises:
      EOFError: the record is cut.
    """
    from warcio.bufferedreaders import ChunkedDataReader

    headers = record.http_headers
    kind = headers.get_header("Content-Type", "") if headers else ""
    if record.rec_type != "response" or "html" not in kind.lower():
        return None
    chunked = headers.get_header("Transfer-Encoding", "").lower() == "chunked"
    stream = ChunkedDataReader(record.raw_stream) if chunked else record.raw_stream
    body = _read_all(stream)
    if record.raw_stream.limit > 0 and len(body) <= MAX_PAGE_BYTES:
        raise EOFError("the record is cut")
    encodings = headers.get_header("Content-Encoding", "").lower().split(",")
    for encoding in reversed([name.strip() for name in encodings]):
        if encoding in ("", "identity", "none", "utf-8"):
            continue
        if encoding not in UNPACK:
            return "page in an unknown encoding"
        if len(body) > MAX_PAGE_BYTES:
            return "page too large"
        try:
            body = UNPACK[encoding](body)
        except (zlib.error, brotli.error, zstandard.ZstdError):
            if not body.lstrip().startswith(b"<"):  # else it was unpacked before
                return "page that cannot be unpacked"
    charset = kind.lower().partition("charset=")[2].partition(";")[0]
    return Page(body, charset, record.rec_headers.get_header("WARC-Target-URI", ""))


def _read_all(stream: Any) -> bytes:
    """Reads a stream up to MAX_PAGE_BYTES + 1."""
    parts, size = [], 0
    while size <= MAX_PAGE_BYTES:
        part = stream.read(MAX_PAGE_BYTES + 1 - size)
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _gunzip(body: bytes) -> bytes:
    return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, MAX_PAGE_BYTES + 1)


def _inflate(body: bytes) -> bytes:
    """Unpacks "deflate", which is zlib's format, or by mistake the format in it."""
    try:
        return zlib.decompressobj().decompress(body, MAX_PAGE_BYTES + 1)
    except zlib.error:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, MAX_PAGE_BYTES + 1)


def _unpack_brotli(body: bytes) -> bytes:
    limit = MAX_PAGE_BYTES + 1
    return brotli.Decompressor().process(body, output_buffer_limit=limit)[:limit]


def _unpack_zstd(body: bytes) -> bytes:
    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    with unpacker.stream_reader(io.BytesIO(body), read_across_frames=True) as stream:
        return _read_all(stream)


UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
    "br": _unpack_brotli,
    "zstd": _unpack_zstd,
}
