"""The server: answers computed by hand, and every refusal."""

import base64
import io
import socket
import struct
import tempfile
import threading
import time
import zlib

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from align_jax.search.batching import BatchingEncoder, Busy
from align_jax.search.server import make_app
from align_jax.search.uploads import read_upload
from align_jax.search.vector_index import Description, IndexSource, create_index
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect

NAMES = tiny.NAMES
WIDTH = len([*tiny.COLOURS, *tiny.SHAPES])


class Encoder(FixedEncoder):
    """A `FixedEncoder` with the argument `unreadable`, as a batch encoder passes it."""

    def __init__(self):
        super().__init__(perfect, perfect)

    def encode_images(self, pictures, unreadable=None):
        return super().encode_images(pictures)


def upload(name, shade=90):
    return base64.b64encode(tiny.draw(name, shade)).decode()


@pytest.fixture
def index(tmp_path):
    index = create_index(str(tmp_path / "i"), Description("m", "c", WIDTH, 8))
    rows = np.float32([perfect(name) for name in NAMES])
    texts = [f"{name} <b>" for name in NAMES]
    index.put(NAMES, [""] * len(NAMES), texts, [b"a jpeg"] * len(NAMES), rows)
    return index


@pytest.fixture
def encoder():
    encoder = BatchingEncoder(Encoder(), 4, 100)
    yield encoder
    encoder.close()


@pytest.fixture
def client(index, encoder):
    labels, captions = [*tiny.COLOURS], ["red left", "blue right"]
    app = make_app(index, encoder, 0.1, labels, captions)
    return TestClient(app, base_url="http://127.0.0.1")


@pytest.fixture
def nothing_written(index, tmp_path, monkeypatch):
    """Checks that no file changes in the index, working and temporary folders."""
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # makes `tempfile` read TMPDIR again

    def files():
        there = {path: path.lstat() for path in tmp_path.rglob("*")}
        return {path: (s.st_size, s.st_mtime_ns) for path, s in there.items()}

    assert tempfile.gettempdir() == str(tmp_path / "temporary")  # tries to write there
    before = files()
    assert len(before) > 5
    yield
    assert files() == before


def found(client, *terms, **more):
    answer = client.post("/api/search", json={"terms": terms, **more})
    assert answer.status_code == 200, answer.text
    return [(hit["id"], round(hit["score"], 4)) for hit in answer.json()["hits"]]


@pytest.mark.usefixtures("nothing_written")
def test_texts_pictures_and_pictures_of_the_index_are_searched(client):
    hits = found(client, {"text": "green"}, limit=4)
    assert {name.split()[0] for name, _ in hits} == {"green"} and hits[0][1] == 0.7071
    assert found(client, {"image": upload("red top")})[0] == ("red top", 1.0)
    assert found(client, {"id": "red top"})[0] == ("red top", 1.0)
    less = [{"image": upload("red top")}, {"text": "red", "weight": -0.7}]
    moved = found(client, *less, {"text": "blue", "weight": 0.7}, limit=1)
    assert moved[0][0] == "blue top"
    nothing = {"text": "blue", "weight": 0}
    assert found(client, {"text": "red"}, nothing) == found(client, {"text": "red"})
    exact = found(client, {"text": "green"}, limit=4, exact=True)
    assert exact == hits


@pytest.mark.usefixtures("nothing_written")
def test_a_picture_is_sorted_and_captioned(client):
    answer = client.post("/api/classify", json={"image": upload("red left")}).json()
    assert [row["text"] for row in answer["labels"]][0] == "red"
    odds = np.exp(np.array([np.sqrt(0.5), 0, 0]) / 0.1)
    assert answer["labels"][0]["score"] == pytest.approx(odds[0] / odds.sum(), abs=1e-5)
    assert [(c["text"], round(c["score"], 3)) for c in answer["captions"]] == [
        ("red left", 1.0),
        ("blue right", 0.0),
    ]
    own = {"image": upload("red left"), "labels": ["left", "right"]}
    assert client.post("/api/classify", json=own).json()["labels"][0]["text"] == "left"


def test_captions_are_near_pictures_texts_where_none_are_given(index, encoder):
    client = TestClient(make_app(index, encoder, 0.1), base_url="http://127.0.0.1")
    answer = client.post("/api/classify", json={"image": upload("red left")}).json()
    assert answer["captions"][0]["text"] == "red left <b>"
    assert answer["captions"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert len({row["text"] for row in answer["captions"]}) == 5
    assert answer["labels"] == [] and len(answer["absent"]) == 1
    assert answer["absent"][0].startswith("no labels: the collection has none; start")
    own = {"image": upload("red left"), "labels": ["red", "blue"]}
    assert client.post("/api/classify", json=own).json()["absent"] == []
    index.delete(NAMES)
    answer = client.post("/api/classify", json=own).json()
    assert (
        answer["captions"] == [] and "near to it have no texts" in answer["absent"][0]
    )


def test_no_path_is_told(index, client):
    index.source = IndexSource("/home/somebody/")
    body = {"terms": [{"text": "red"}]}
    texts = [client.post("/api/search", json=body).text, client.get("/").text]
    texts += [client.post("/api/classify", json={"image": upload("red top")}).text]
    assert index.search(np.float32(perfect("red top")), 1)[0].path.startswith("/home")
    assert not any("somebody" in text for text in texts)


def test_an_empty_index_finds_nothing(index, client):
    index.delete(NAMES)
    assert found(client, {"text": "red"}) == []


@pytest.mark.usefixtures("nothing_written")
def test_embeddings_are_given(client):
    body = {"texts": ["red", "blue top"], "images": [upload("red left")]}
    answer = client.post("/api/embed", json=body).json()
    assert np.allclose(answer["texts"][1], perfect("blue top"))
    assert np.allclose(answer["images"][0], perfect("red left"))


def test_the_page_and_the_interface_are_described(client):
    page = client.get("/")
    assert "Search 12 pictures" in page.text and "<form" in page.text
    assert "script-src 'unsafe-inline'" in page.headers["content-security-policy"]
    assert "http" not in page.text.replace("http-equiv", "")  # nothing from elsewhere
    described = client.get("/openapi.json").json()["paths"]
    assert {*described} == {
        "/api/search",
        "/api/embed",
        "/api/classify",
        "/api/thumbnail",
    }


def test_openapi_tells_all_refusals_and_the_token(index, encoder):
    def described(token):
        client = TestClient(
            make_app(index, encoder, 0.1, token=token), base_url="http://127.0.0.1"
        )
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return client.get("/openapi.json", headers=headers).json()

    def statuses(found, path, method):
        operation = found["paths"][path][method]
        problem = {"$ref": "#/components/schemas/Problem"}
        refused = {s: a for s, a in operation["responses"].items() if s != "200"}
        for answer in refused.values():
            assert answer["content"]["application/json"]["schema"] == problem
        return {*map(int, refused)}

    plain, guarded = described(""), described("open sesame")
    computed = {408, 411, 413, 415, 422, 429}
    for path in ("/api/search", "/api/embed", "/api/classify"):
        assert statuses(plain, path, "post") == computed
        assert statuses(guarded, path, "post") == computed | {401}
        assert guarded["paths"][path]["post"]["security"] == [{"HTTPBearer": []}]
    assert statuses(plain, "/api/thumbnail", "get") == {404, 422, 429}
    assert statuses(guarded, "/api/thumbnail", "get") == {401, 404, 422, 429}
    schemes = guarded["components"]["securitySchemes"]
    assert schemes == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
    assert "securitySchemes" not in plain["components"]


def test_thumbnails_are_the_index_s_and_no_file_is_served(client, tmp_path):
    picture = client.get("/api/thumbnail", params={"id": "red top"})
    assert picture.content == b"a jpeg"
    assert picture.headers["x-content-type-options"] == "nosniff"
    (tmp_path / "secret").write_text("secret")
    for name in ("../secret", str(tmp_path / "secret"), "' OR '1'='1", "%2e%2e/secret"):
        assert client.get("/api/thumbnail", params={"id": name}).status_code == 404
    for path in ("/../secret", "/..%2fsecret", "/static/x", "//etc/passwd"):
        assert client.get(path).status_code == 404


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
    """Returns a JPEG with more scans than it needs."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "jpeg")
    return file.getvalue()[:-2] + b"\xff\xda" * count


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
        assert message in answer.text and len(answer.text) < 2000
        assert found(client, {"id": "red top"}, limit=1)

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
    headers = {"Authorization": "Bearer open sesame"}
    answer = client.post("/api/search", json=body, headers=headers)
    assert answer.status_code == 200
    assert "Search 12 pictures" in client.get("/?token=open sesame").text  # redirected
    assert client.post("/api/search", json=body).status_code == 200  # by the cookie


def test_too_many_requests_are_told_to_come_again(index, encoder, monkeypatch):
    client = TestClient(make_app(index, encoder, 0.1), base_url="http://127.0.0.1")

    def busy(texts):
        raise Busy("7 texts and pictures are waiting")

    monkeypatch.setattr(encoder, "encode_texts", busy)
    body = {"terms": [{"text": "red"}]}
    answer = client.post("/api/search", json=body)
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert "7 texts and pictures are waiting" in answer.json()["detail"]


def test_an_upload_s_header_alone_is_read(monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "png")
    monkeypatch.setattr(Image.Image, "load", None)  # would fail if it were decoded
    content = base64.b64encode(file.getvalue()).decode()
    assert read_upload(content) == file.getvalue()
