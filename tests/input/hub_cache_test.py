"""Sets in the cache that huggingface_hub's own `snapshot_download` writes."""

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import threading

import huggingface_hub
import pytest
from huggingface_hub import constants

from align_jax.errors import InputError
from align_jax.evaluation.datacomp import find_sets
from align_jax.evaluation.runner import make_evaluators
from align_jax.input.hub_cache import find_snapshot
from tests import tiny, wds
from tests.evaluation.selection_test import write_winoground
from tests.fixed_encoder import FixedEncoder, perfect, worse

REVISION = "a" * 40


@contextlib.contextmanager
def serving(folders):
    """Yields the address of a hub that has folders, {name of the dataset: folder}."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            words = self.path.partition("?")[0].split("/")
            if words[1] == "api":
                self._send(json.dumps(self._describe(*words[3:6])).encode())
                return
            folder = folders["/".join(words[2:4])]
            content = folder.joinpath(*words[6:]).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            self._send(content, {"X-Repo-Commit": REVISION, "ETag": f'"{digest}"'})

        do_GET = do_HEAD

        def _describe(self, owner, name, what):
            folder = folders[f"{owner}/{name}"]
            if what == "revision":
                return {"id": f"{owner}/{name}", "sha": REVISION}
            assert what == "tree"
            return [
                {
                    "type": "file",
                    "path": str(path.relative_to(folder)),
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                }
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ]

        def _send(self, content, headers=()):
            self.send_response(200)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def download(monkeypatch, tmp_path):
    """Returns a function that downloads folders into a new cache and returns it."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def fetch(**folders):
        cache = tmp_path / "cache"
        named = {f"org/{name}": pathlib.Path(f) for name, f in folders.items()}
        with serving(named) as url:
            for name in named:
                huggingface_hub.snapshot_download(
                    name, repo_type="dataset", cache_dir=cache, endpoint=url
                )
        return cache

    return fetch


def evaluate(directory, encoder, **fields):
    fields = {"kind": "wds", "directory": str(directory), **fields}
    return dict(make_evaluators({"set": fields})["set"].run(encoder))


@pytest.mark.parametrize("write", [wds.write_classes, wds.write_captions])
def test_a_set_is_read_from_the_cache(download, tmp_path, write):
    directory = write(tmp_path / "set")
    cache = download(wds_tiny=directory)
    dataset = cache / "datasets--org--wds_tiny"
    snapshot = dataset / "snapshots" / REVISION
    link = snapshot / "test" / "0.tar"
    assert link.is_symlink()
    assert (dataset / "blobs") in link.resolve().parents
    encoder = worse({"red left": "green left"})
    expected = evaluate(directory, encoder)
    for given in (snapshot, dataset, cache):
        assert find_snapshot(str(given)) == str(snapshot)
        assert evaluate(given, encoder, expected=12) == expected
    kind = "zero_shot" if write is wds.write_classes else "retrieval"
    fields = {"kind": kind, "split": "test", "format": "wds"}
    if kind == "zero_shot":
        fields["prompts"] = ""
    found = evaluate(cache, encoder, **fields)
    assert found["queries" if kind == "zero_shot" else "t2i_queries"] in (12, 24)


def test_sets_of_other_layouts_are_read_from_the_cache(download, tmp_path):
    fields = write_winoground(tmp_path / "winoground")
    encoder = FixedEncoder(perfect, perfect)
    cache = download(winoground=fields["directory"])
    found = evaluate(cache, encoder, kind="selection", format="winoground", expected=2)
    assert found["acc"] == 1
    write = wds.write_cues(tmp_path / "cues", [("red", tiny.NAMES[:5], ["red top"])])
    cache = download(winogavil=write)
    found = evaluate(
        cache / "datasets--org--winogavil", encoder, task="associations", expected=1
    )
    assert found["queries"] == 1


def test_datacomp_s_sets_are_found_in_the_cache(download, tmp_path):
    sets = {
        name: wds.write_classes(tmp_path / name)
        for name in ("wds_mnist_test", "wds_gtsrb_test", "wds_other")
    }
    cache = download(**sets)
    assert find_sets(str(cache)) == {
        name: f"{cache}/datasets--org--wds_{folder}_test/snapshots/{REVISION}"
        for name, folder in (("GTSRB", "gtsrb"), ("MNIST", "mnist"))
    }
    with pytest.raises(InputError, match=r"has 3 datasets; name the folder of one, su"):
        find_snapshot(str(cache))


def test_the_newest_of_several_snapshots_is_read(tmp_path):
    dataset = tmp_path / "datasets--org--wds_tiny"
    with pytest.raises(InputError, match=r"has the snapshots \[\]; wanted that of re"):
        find_snapshot(str(dataset))
    for name in ("one", "two"):
        (dataset / "snapshots" / name).mkdir(parents=True)
    with pytest.raises(InputError, match=r"has the snapshots \['one', 'two'\]; wanted"):
        find_snapshot(str(dataset))
    (dataset / "refs").mkdir()
    (dataset / "refs" / "main").write_text("two")
    assert find_snapshot(str(dataset)) == f"{dataset}/snapshots/two"
    assert find_snapshot(f"{dataset}/snapshots/one") == f"{dataset}/snapshots/one"
    assert find_snapshot(f"{dataset}{os.sep}") == f"{dataset}/snapshots/two"
    (dataset / "refs" / "main").write_text("three")
    with pytest.raises(InputError, match=r"has the snapshots \['one', 'two'\]; wanted"):
        find_snapshot(str(dataset))
