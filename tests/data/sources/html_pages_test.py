import collections
import gzip
import time
import zlib

import brotli
import pytest
import zstandard

from data.sources.html_pages import decode_page, image_tags, read_page
from tests.data.sources.reading import PNG, read


def test_html_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    root = tmp_path / "site"
    (root / "sub").mkdir(parents=True)
    (root / "a b.png").write_bytes(PNG)
    (root / "sub" / "b.png").write_bytes(PNG)
    page = """<title><img src=no alt=title></title><!-- <img src=no alt=no> -->
    <script>"<img src=no alt=script>"</script><a title="<img src=no alt=no>">
    <img src="b.png" alt="Caf&eacute; > bar">
    <IMG alt='root' src='/a%20b.png'><img src=http://h/c.png alt=>
    <img data-src=//h/d.png src=b.png alt=lazy><img src=b.png>
    <img src="../../secret.png" alt=x><img src=gone.png alt=y>
    <img alt="data" src="data:image/png;base64,iVBORw=="><img src=javascript:x alt=z>"""
    (root / "sub" / "page.html").write_text(page)
    rows, drops = read("html", root, language="en")
    assert rows == [
        (PNG, None, "Café > bar", "en"),
        (PNG, None, "root", "en"),
        (None, "http://h/c.png", "", "en"),
        (b"\x89PNG", None, "data", "en"),
    ]
    assert drops == {
        "no alt": 1,
        "path outside its folder": 1,
        "image file missing": 1,
        "no image and no url": 2,  # a URL without a scheme, and javascript:
    }
    rows, _ = read("html", root, base_url="https://h/x/")
    assert rows[0][:2] == (PNG, "https://h/x/sub/b.png")
    assert rows[3][:2] == (None, "https://h/d.png")


def test_html_base():
    page = b"<base href='http://b/x/'><base href='http://c/'><img src=1.png alt=t>"
    rows = list(read_page(page, "", "http://a/", None, collections.Counter()))
    assert rows == [(None, "http://b/x/1.png", "t")]


@pytest.mark.parametrize(
    ("page", "charset"),
    [
        ("<p>é</p>".encode("utf-8-sig"), ""),
        (b"\xff\xfe" + "<p>é</p>".encode("utf-16-le"), ""),
        (b"\xe9", "ISO-8859-1"),
        (b'<meta charset="windows-1252">\xe9', ""),
        (b'<meta http-equiv=content-type content="text/html; charset=latin1">\xe9', ""),
        ("é".encode(), "rot13"),
    ],
)
def test_html_encodings(page, charset):
    assert "é" in decode_page(page, charset)


def test_a_text_with_bad_bytes_is_dropped_and_the_page_goes_on():
    drops = collections.Counter()
    page = b"<img src=http://a/1 alt=caf\xe9><img src=http://a/2 alt=b>"
    rows = list(read_page(page, "", "", None, drops))
    assert rows == [None, (None, "http://a/2", "b")]
    assert drops == {"undecodable text": 1}


@pytest.mark.parametrize(
    "bomb",
    [
        b"<div>" * 1_000_000,
        b"".join(b"<p><font color=%d>" % n for n in range(100_000)),
        b"<img " + b" ".join(b"a%d=1" % n for n in range(500_000)) + b">",
        b"<!--" * 1_000_000,
        b"<a " * 1_000_000,
        b"<script>" * 500_000,
        b"<a b='" * 500_000,
        b'<img alt="' * 500_000,
        b"<" * 5_000_000,
        b"<title></titl" * 300_000,
        b"<a" + b" " * 5_000_000,
        b"<![CDATA[" * 500_000,
        b"<meta " * 800_000,
        b"<img src=http://a alt=x>" * 100_000,
        b"x" * 10_000_001,
    ],
)
def test_html_bombs_take_linear_time(bomb):
    began = time.monotonic()
    drops = collections.Counter()
    page = b"<img src=http://a/1 alt=first>" + bomb
    rows = [row for row in read_page(page, "", "", None, drops) if row]
    assert time.monotonic() - began < 10
    if len(bomb) > 10_000_000:
        assert not rows
        assert drops == {"page too large": 1}
    else:
        assert rows[0] == (None, "http://a/1", "first")
        assert len(rows) <= 10_000


def test_tags_are_those_that_a_whole_page_parser_finds():
    from selectolax.lexbor import LexborHTMLParser

    parts = ["<img src=1 alt=a>", "<img alt='x>y' src=2 />", '<img alt=5" src=3>']
    parts += ["<p class=a/b>", "<b title='<img src=no>'>", "<!-- <img> -->", "<!-->"]
    parts += [
        "</p <img src=4>",
        "<!doctype html>",
        "<img/src=5/alt=c>",
        "< img src=no>",
    ]
    parts += ["<style><img src=no></style>", "<img src = '6' alt = 'é&amp;' alt=2>"]
    parts += ["<imgx src=no>", "<IMG\nSRC=7\n>", "<img ==8>", "<textarea></p><img>"]
    for last in range(len(parts) + 1):
        page = "".join(parts[:last])
        found = [
            LexborHTMLParser(t).css_first("img").attributes for t in image_tags(page)
        ]
        wanted = [node.attributes for node in LexborHTMLParser(page).css("img")]
        assert found == wanted, page


def test_warc(tmp_path):
    def record(kind, url, body, http=b"text/html; charset=latin1"):
        payload = b"HTTP/1.1 200 OK\r\nContent-Type: " + http + b"\r\n\r\n" + body
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
        head += "Content-Type: application/http; msgtype=response\r\n"
        head += f"Content-Length: {len(payload)}\r\n\r\n"
        return gzip.compress(head.encode() + payload + b"\r\n\r\n")

    page = b"<img src=1.png alt='caf\xe9'>"
    records = [
        record("response", "http://a/x/", page),
        record("response", "http://b/", page, b"image/png"),
        record("response", "http://c/", page),
    ]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records))
    rows, drops = read("html", tmp_path, language="fr")
    assert rows == [
        (None, "http://a/x/1.png", "café", "fr"),
        (None, "http://c/1.png", "café", "fr"),
    ]
    assert not drops
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records)[:-30])
    rows, drops = read("html", tmp_path)
    assert len(rows) == 1
    assert drops == {"truncated warc": 1}


def test_packed_pages_of_a_warc(tmp_path):
    page = b"<img src=1.png alt=one>"
    whole = zlib.compress(page)
    bodies = {
        "br": brotli.compress(page),
        "zstd": zstandard.compress(page),
        "gzip": gzip.compress(page),
        "deflate": whole,
        "Deflate": whole[2:-4],
        "gzip, br": brotli.compress(gzip.compress(page)),
        "identity": page,
    }
    plain = {"zstd": page, "br": page}  # unpacked by the crawler
    bad = {"br": b"\xff" * 99, "lzma": page}
    bombs = {"br": brotli.compress(b"<" * 20_000_000), "zstd": b"?"}
    bombs["zstd"] = zstandard.compress(b"<" * 20_000_000)
    records = b""
    for part in (bodies, plain, bad, bombs):
        for encoding, body in part.items():
            head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
            head += f"Content-Encoding: {encoding}\r\n\r\n"
            payload = head.encode() + body
            head = "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/\r\n"
            head += "Content-Type: application/http; msgtype=response\r\n"
            head += f"Content-Length: {len(payload)}\r\n\r\n"
            records += head.encode() + payload + b"\r\n\r\n"
    for name, content in (("a.warc", records), ("a.warc.gz", gzip.compress(records))):
        (tmp_path / name).write_bytes(content)
        rows, drops = read("html", tmp_path / name)
        assert rows == [(None, "http://a/1.png", "one", "")] * 9
        assert drops == {
            "page that cannot be unpacked": 1,
            "page in an unknown encoding": 1,
            "page too large": 2,
        }
