"""The server's answers, computed by hand."""

import base64
import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from align_jax.search.server import make_app
from align_jax.search.uploads import read_upload
from align_jax.search.vector_index import IndexSource
from tests import tiny
from tests.fixed_encoder import perfect

NAMES = tiny.NAMES


def upload(name, shade=90):
    return base64.b64encode(tiny.draw(name, shade)).decode()


def found(client, *terms, **more):
    answer = client.post("/api/search", json={"terms": terms, **more})
    assert answer.status_code == 200, answer.text
    return [(hit["id"], round(hit["score"], 4)) for hit in answer.json()["hits"]]


@pytest.mark.usefixtures("nothing_written")
def test_texts_pictures_and_pictures_of_the_index_are_searched(client):
    hits = found(client, {"text": "green"}, limit=4)
    assert {name.split()[0] for name, _ in hits} == {"green"}
    assert hits[0][1] == 0.7071
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
    assert answer["labels"][0]["text"] == "red"
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
    assert answer["labels"] == []
    assert len(answer["absent"]) == 1
    assert answer["absent"][0].startswith("no labels: the collection has none; start")
    own = {"image": upload("red left"), "labels": ["red", "blue"]}
    assert client.post("/api/classify", json=own).json()["absent"] == []
    index.delete(NAMES)
    answer = client.post("/api/classify", json=own).json()
    assert answer["captions"] == []
    assert "near to it have no texts" in answer["absent"][0]


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
    assert "Search 12 pictures" in page.text
    assert "<form" in page.text
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
    assert picture.headers["cache-control"] == "no-store"
    (tmp_path / "secret").write_text("secret")
    for name in ("../secret", str(tmp_path / "secret"), "' OR '1'='1", "%2e%2e/secret"):
        assert client.get("/api/thumbnail", params={"id": name}).status_code == 404
    for path in ("/../secret", "/..%2fsecret", "/static/x", "//etc/passwd"):
        assert client.get(path).status_code == 404


def test_an_upload_s_header_alone_is_read(monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "png")
    monkeypatch.setattr(Image.Image, "load", None)  # would fail if it were decoded
    content = base64.b64encode(file.getvalue()).decode()
    assert read_upload(content) == file.getvalue()
