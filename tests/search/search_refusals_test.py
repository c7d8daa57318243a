"""Refusals of bad requests, of strangers and of too many requests."""

import base64
import io
import socket
import struct
import threading
import time
import zlib

import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from align_jax.search.batching import Busy
from align_jax.search.server import make_app


def bomb(width=10_000, height=10_000):
    """Returns a PNG of a few hundred bytes that claims to have 100 million pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def scans(count):
    """Returns a progressive JPEG with more scans than it needs."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "jpeg", progressive=True)
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0"
    return file.getvalue()[:-2] + scan * count + b"\xff\xd9"


def postscript():
    """Returns a file for which Pillow would start Ghostscript."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "eps")
    return file.getvalue()


@pytest.mark.usefixtures("nothing_written")
def test_bad_requests_are_refused_in_a_line_and_the_server_goes_on(client):
    def refused(status, message, body=None, path="/api/search", **request):
        answer = client.post(path, **({"json": body} if body is not None else request))
        assert answer.status_code == status, answer.text
        assert message in answer.text
        assert len(answer.text) < 2000
        after = client.post("/api/search", json={"terms": [{"id": "red top"}]})
        assert after.status_code == 200
        assert after.json()["hits"]

    def image(content):
        return {"terms": [{"image": base64.b64encode(content).decode()}]}

    refused(422, "no picture that can be read", image(b"no picture"))
    refused(422, "100,000,000 pixels; at most 25,000,000", image(bomb()))
    refused(422, "pixels", image(bomb(2_000_000, 2_000_000)))
    refused(422, "no base64", {"terms": [{"image": "???"}]})
    refused(422, "at most 1000 characters", {"terms": [{"text": "a" * 1001}]})
    refused(422, "one of text, image and id", {"terms": [{}]})
    refused(422, "one of text, image and id", {"terms": [{"text": "a", "id": "b"}]})
    refused(422, "no picture 'none'", {"terms": [{"id": "none"}]})
    refused(422, "at least 1 item", {"terms": []})
    headers = {"content-type": "application/json"}
    for half in (
        b'{"terms": [{"text": "a \\ud83d"}]}',
        b'{"terms": [{"id": "a \\ud83d"}]}',
        b'{"terms": [{"text": "a", "\\ud83d": 1}]}',
    ):
        refused(422, "body.terms.0", content=half, headers=headers)
    half = b'{"texts": ["a", "\\ud83d"]}'
    refused(422, "unicode string", path="/api/embed", content=half, headers=headers)
    red = [{"text": "red"}]
    refused(422, "less than or equal to 200", {"terms": red, "limit": 201})
    refused(422, "Extra inputs", {"terms": red, "limits": 3})
    refused(422, "the query is empty", {"terms": [{"text": "red", "weight": 0}]})
    cancelled = [{"text": "red", "weight": 1}, {"text": "red", "weight": -1}]
    refused(422, "cancel each other", {"terms": cancelled})
    refused(422, "at most 64 items", {"texts": ["a"] * 65}, path="/api/embed")
    refused(415, "wanted application/json", data={"a": "b"})
    refused(415, "wanted application/json", content=b"{}")
    json_type = {"content-type": "application/json"}
    refused(422, "JSON decode error", content=b"{", headers=json_type)
    weight = b'{"terms": [{"text": "red", "weight": NaN}]}'
    refused(422, "body.terms.0.weight", content=weight, headers=json_type)
    lone = b'{"terms": [{"id": "\\ud800"}]}'
    refused(422, "", content=lone, headers=json_type)
    refused(422, "Extra inputs", {"x" * 100_000: 1, "terms": red})
    refused(422, "", {"terms": [[]] * 100_000})
    refused(422, "more than 100 scans", image(scans(200)))
    refused(422, "no picture that can be read", image(postscript()))
    refused(422, "", content=b"\xff\xfe", headers=json_type)
    huge = {**json_type, "content-length": str(20 << 20)}
    refused(413, "20971520 bytes; at most", content=b"{}", headers=huge)
    chunks = (part for part in (b"{", b"}"))
    refused(411, "wanted a Content-Length", content=chunks, headers=json_type)
    assert client.get("/api/search").status_code == 405


def test_a_body_in_chunks_of_no_known_length_is_refused_by_a_real_server(
    index, encoder
):
    app = make_app(index, encoder, 0.1)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = listening.getsockname()
        config = uvicorn.Config(app, log_level="critical")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        with socket.create_connection(address, timeout=20) as client:
            client.sendall(
                b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Content-Type: application/json\r\nContent-Length: 10\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n5\r\n{    \r\n"
            )
            answer = client.recv(4096)
        server.should_exit = True
        thread.join(20)
    assert answer.split()[1] in (b"400", b"411")


def test_another_host_s_name_is_refused(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_a_token_opens_the_page_and_the_interface(index, encoder):
    client = TestClient(
        make_app(index, encoder, 0.1, token="open sesame"),
        base_url="http://127.0.0.1",
    )
    for path in ("/", "/openapi.json", "/api/thumbnail?id=red top", "/?token=wrong"):
        assert client.get(path).status_code == 401
    body = {"terms": [{"text": "red"}]}
    assert client.post("/api/search", json=body).status_code == 401
    for scheme in ("Bearer", "bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} open sesame"}
        answer = client.post("/api/search", json=body, headers=headers)
        assert answer.status_code == 200
    headers = {"Authorization": "Basic open sesame"}
    assert client.post("/api/search", json=body, headers=headers).status_code == 401
    assert "Search 12 pictures" in client.get("/?token=open sesame").text  # redirected
    assert client.post("/api/search", json=body).status_code == 200  # by the cookie


def test_too_many_requests_are_told_to_come_again(index, encoder, monkeypatch):
    client = TestClient(make_app(index, encoder, 0.1), base_url="http://127.0.0.1")

    def busy(texts):
        raise Busy("7 texts and pictures are waiting")

    monkeypatch.setattr(encoder, "encode_texts", busy)
    body = {"terms": [{"text": "red"}]}
    answer = client.post("/api/search", json=body)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert "7 texts and pictures are waiting" in answer.json()["detail"]
