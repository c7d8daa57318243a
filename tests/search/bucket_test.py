"""The search commands on an index in a bucket, which a local server imitates."""

import pathlib
import socket
import subprocess
import sys
import time

import httpx
import pytest

from align_jax.errors import InputError
from align_jax.search import __main__ as search
from align_jax.search.vector_index import open_index
from tests import tiny
from tests.buckets.storage import serve

pytestmark = pytest.mark.buckets
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def google(monkeypatch, tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as storage:
        for name, value in storage.environment.items():
            monkeypatch.setenv(name, value)
        yield "gs://bucket/pictures"


@pytest.fixture
def amazon(monkeypatch):
    command = ROOT / ".venv-buckets" / "bin" / "moto_server"
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([command, f"-p{port}"], stderr=subprocess.DEVNULL)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": address,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for _ in range(600):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    httpx.put(f"{address}/pictures").raise_for_status()
    yield "s3://pictures"
    server.terminate()
    server.wait()


@pytest.mark.parametrize("kind", ["amazon", "google"])
def test_an_index_in_a_bucket_is_built_continued_asked_and_deleted_from(
    kind, request, tmp_path, monkeypatch, capsys
):
    bucket = request.getfixturevalue(kind)
    place, model = f"{bucket}/deep/index", tiny.write_model(tmp_path / "model")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in tiny.NAMES[:5]:
        (pictures / f"{name}.png").write_bytes(tiny.draw(name, 90))
    monkeypatch.chdir(tmp_path)

    def tell(*arguments):
        monkeypatch.setattr(sys, "argv", ["search", *map(str, arguments)])
        search.main()
        return capsys.readouterr().out.splitlines()

    with pytest.raises(InputError, match=f"no index in '{bucket}/deep/index'"):
        open_index(place)
    build = ("build", f"--checkpoint={model}", f"--images={pictures}")
    told = "5 pictures; 5 added, 0 there already, 0 deleted, 0 unreadable"
    assert tell(*build, f"--out={place}") == [f"{place}: {told}"]
    path = pictures / f"{tiny.NAMES[3]}.png"
    query = tell("query", place, f"--image={path}")
    assert query[0] == f"1.0000  {path.name}  {path}"
    assert len(query) == 5
    local = tmp_path / "local"
    tell(*build, f"--out={local}")
    assert tell("query", local, f"--image={path}") == query
    path.unlink()
    told = "4 pictures; 0 added, 4 there already, 1 deleted, 0 unreadable"
    assert tell(*build, f"--out={place}", "--prune") == [f"{place}: {told}"]
    gone = f"{tiny.NAMES[0]}.png"
    assert tell("delete", place, gone) == [f"{place}: 1 of 1 deleted"]
    assert len(open_index(place)) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["local", "model", "pictures"]
