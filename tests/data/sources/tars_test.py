import gzip
import json
import os
import subprocess
import tarfile

import pytest

from align_jax.errors import InputError
from align_jax.search.collection import SUFFIXES
from align_jax.tars import IMAGE_SUFFIXES
from tests.data.sources.reading import PNG, read, write_tar


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_webdataset_pairs(tmp_path, name, mode):
    fields = {"caption": "two", "url": "http://u/2", "language": "de"}
    members = [
        ("x/1.jpg", PNG),
        ("x/1.txt", b"one"),
        ("y/1.PNG", PNG),
        ("y/1.json", json.dumps(fields).encode()),
        ("3.json", b'{"alt_text": "three", "url": "http://u/3"}'),
        ("4.webp", PNG),
        ("5.jpg", PNG),
        ("5.txt", b"caf\xe9"),
        ("6.txt", b"no picture"),
        ("7.jpg", PNG),
        ("7.json", b"[" * 100_000),
        ("8.jpg", PNG),
        ("8.json", b'{"text": "\\ud800"}'),
        ("9.jpg", PNG),
        ("9.txt", b""),
    ]
    write_tar(tmp_path / name, members, mode)
    rows, drops = read("webdataset", tmp_path, language="en")
    assert rows == [
        (PNG, None, "one", "en"),
        (PNG, "http://u/2", "two", "de"),
        (None, "http://u/3", "three", "en"),
        (PNG, None, "", "en"),
    ]
    assert drops == {
        "no text": 1,
        "undecodable text": 2,
        "no image and no url": 1,
        "bad json": 1,
    }


def test_every_format_that_is_read_may_be_in_a_tar():
    assert {suffix.removeprefix(".") for suffix in SUFFIXES} <= {*IMAGE_SUFFIXES}


def test_tar_names_that_leave_it_and_links_are_ignored(tmp_path):
    path = tmp_path / "a.tar"
    members = [("../../evil.jpg", PNG), ("/evil.jpg", PNG), ("a.jpg", PNG)]
    write_tar(path, [*members, ("a.txt", b"a")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    rows, drops = read("webdataset", path)
    assert rows == [(PNG, None, "a", "")]
    assert drops == {"path outside the tar": 2, "link or device in the tar": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_a_cut_tar_keeps_the_pairs_before_the_cut(tmp_path):
    members = [(f"{n}.{s}", b"t" * 700) for n in range(5) for s in ("jpg", "txt")]
    write_tar(tmp_path / "whole.tar", members)
    content = (tmp_path / "whole.tar").read_bytes()
    for pairs, cut in [
        (2, 2 * 3072 + 600),  # Inside a picture.
        (2, 2 * 3072 + 100),  # Inside a header.
        (2, 2 * 3072 + 1536 + 700),  # Inside a text.
        (2, 2 * 3072),  # Between two members.
        (5, 5 * 3072),  # Before the end mark.
    ]:
        (tmp_path / "cut.tar").write_bytes(content[:cut])
        rows, drops = read("webdataset", tmp_path / "cut.tar")
        assert (len(rows), drops) == (pairs, {"truncated tar": 1}), cut
    packed = gzip.compress(content, mtime=0)
    (tmp_path / "cut.tar.gz").write_bytes(packed[: len(packed) - 20])
    assert read("webdataset", tmp_path / "cut.tar.gz")[1] == {"truncated tar": 1}
    (tmp_path / "no.tar").write_bytes(b"not a tar" * 1000)
    with pytest.raises(InputError, match=r"no\.tar is not a tar file"):
        read("webdataset", tmp_path / "no.tar")


@pytest.mark.parametrize("layout", ["gnu", "0.0", "0.1", "1.0"])
def test_a_sparse_member_is_refused_and_counted(tmp_path, layout):
    """Writes 60 MiB of nothing as a member of a few bytes, as `tar --sparse` does."""
    size, path = 60 * 2**20, tmp_path / "a.tar"
    file = tmp_path / "1.jpg"
    file.touch()
    os.truncate(file, size)
    (tmp_path / "1.txt").write_text("a")
    (tmp_path / "2.jpg").write_bytes(PNG)
    (tmp_path / "2.txt").write_text("b")
    kind = "gnu" if layout == "gnu" else "pax"
    options = [] if layout == "gnu" else [f"--sparse-version={layout}"]
    names = ["1.jpg", "1.txt", "2.jpg", "2.txt"]
    command = ["tar", "--sparse", f"--format={kind}", *options, "-cf", str(path)]
    subprocess.run([*command, *names], cwd=tmp_path, check=True)
    assert path.stat().st_size < 2**16
    rows, drops = read("webdataset", path)
    assert rows == [(PNG, None, "b", "")]
    assert drops == {"sparse member": 1}


def test_tar_bombs_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.tars.MAX_IMAGE_BYTES", 1000)
    members = [("1.jpg", b"x" * 1001), ("1.txt", b"a"), ("2.jpg", PNG), ("2.txt", b"b")]
    write_tar(tmp_path / "a.tar", members)
    rows, drops = read("webdataset", tmp_path)
    assert [row[2] for row in rows] == ["b"]
    assert drops == {"member too large": 1}
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("1.jpg"))
        tar.addfile(header)
    assert read("webdataset", tmp_path) == ([], {"truncated tar": 1})
