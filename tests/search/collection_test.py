"""Folders of pictures: each file is taken, or counted with its reason."""

import os

import numpy as np
import pytest

from align_jax.errors import InputError
from align_jax.pictures import read_file
from align_jax.search.collection import SUFFIXES, Folder
from align_jax.search.indexing import check_collection
from align_jax.search.vector_index import (
    Description,
    IndexSource,
    create_index,
    open_index,
)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    return folder


def ids(folder):
    return [entry.id for entry in Folder(str(folder))]


def test_a_folder_s_files_are_taken_or_counted(pictures, tmp_path):
    for name in ("a.jfif", "b.JPE", "deep/c.apng", "d.heic", "e.HEIC", "f.jxl", "g"):
        (pictures / name).write_bytes(b"")
    other = tmp_path / "other"
    other.mkdir()
    (other / "h.jpg").write_bytes(b"")
    (pictures / "inside.jpg").symlink_to("a.jfif")
    (pictures / "outside.jpg").symlink_to(other / "h.jpg")
    (pictures / "broken.jpg").symlink_to(tmp_path / "none.jpg")
    (pictures / "loop.jpg").symlink_to("loop.jpg")
    (pictures / "again").symlink_to(pictures / "deep")
    (pictures / "others").symlink_to(other)
    os.mkfifo(pictures / "pipe.jpg")
    found = Folder(str(pictures))
    assert [entry.id for entry in found] == [
        "a.jfif",
        "b.JPE",
        "deep/c.apng",
        "inside.jpg",
    ]
    assert found.left_out == {
        "files that end in .heic": 2,
        "files that end in .jxl": 1,
        "files without ending": 1,
        "links that lead out of the folder": 1,
        "links to other folders": 1,
        "broken links": 2,
        "names of no regular file": 1,
    }
    assert len(found) == 4


def test_the_endings_follow_the_formats_that_are_read():
    known = "jpg jpeg jpe jfif png gif webp bmp tif tiff avif".split()
    assert {f".{name}" for name in known} <= {*SUFFIXES}
    assert not {".eps", ".wmf", ".heic", ".txt", ".pdf"} & {*SUFFIXES}


def test_a_folder_of_links_says_that_none_was_followed(pictures, tmp_path):
    (tmp_path / "blobs").mkdir()
    for number in range(1200):
        (pictures / f"{number}.jpg").symlink_to(tmp_path / "blobs")
    message = "has no picture, .*; left out: links to other folders: 1,200$"
    with pytest.raises(InputError, match=message):
        Folder(str(pictures))
    (tmp_path / "blobs" / "0").write_bytes(b"")
    (pictures / "deep" / "0.jpg").symlink_to(tmp_path / "blobs" / "0")
    with pytest.raises(InputError, match=r"links that lead out of the folder: 1$"):
        Folder(str(pictures))


def test_rare_endings_are_counted_together(pictures):
    (pictures / "a.jpg").write_bytes(b"")
    for number in range(12):
        (pictures / f"b.x{number}").write_bytes(b"")
    told = Folder(str(pictures)).describe_left_out()
    assert told.count("files that end in .x") == 9
    assert told.endswith("; others: 3")


def test_names_that_are_no_utf8_are_escaped(tmp_path):
    folder = os.fsencode(tmp_path) + b"/pictures\xe9"
    os.mkdir(folder)
    for name in (b"/caf\xe9.jpg", b"/plain.jpg", b"/odd.\xe9"):
        with open(folder + name, "wb") as file:
            file.write(name)
    found = Folder(os.fsdecode(folder))
    assert [entry.id for entry in found] == ["caf\\udce9.jpg", "plain.jpg"]
    assert [read_file(entry.picture) for entry in found] == [
        b"/caf\xe9.jpg",
        b"/plain.jpg",
    ]
    assert found.prefix == f"{tmp_path}/pictures\\udce9/"
    assert found.describe_left_out() == "files that end in .\\udce9: 1"
    with open(folder + b"/caf\\udce9.jpg", "wb"):
        pass
    found = Folder(os.fsdecode(folder))
    assert len(found) == 2
    assert found.left_out["names that escapes make equal"] == 1
    index = create_index(
        str(tmp_path / "index"), Description("m", "c", 4, 0), IndexSource(found.prefix)
    )
    assert open_index(str(tmp_path / "index")).source == index.source


def test_an_index_of_another_folder_is_refused(pictures, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    for folder, names in ((pictures, "abcd"), (second, "abx")):
        for name in names:
            (folder / f"{name}.jpg").write_bytes(b"")
    place = str(tmp_path / "index")
    first = Folder(str(pictures))
    check_collection(place, first)  # no index yet
    index = create_index(place, Description("m", "c", 1, 0), IndexSource(first.prefix))
    check_collection(place, Folder(str(second)))  # an empty index
    index.put(ids(pictures), [""] * 4, [""] * 4, [b""] * 4, np.ones((4, 1)))
    check_collection(place, first)
    check_collection(place, Folder(str(second)))  # half of it, as if it had moved
    (second / "b.jpg").unlink()
    with pytest.raises(InputError) as caught:
        check_collection(place, Folder(str(second)))
    assert str(caught.value) == (
        f"{place} is an index of {pictures}/, and 3 of its 4 pictures are not in"
        f" {second}/; give another --out, or --prune to delete them"
    )
    assert open_index(place).source.prefix == f"{pictures}/"
