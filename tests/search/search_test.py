"""The search commands on a folder and a dataset: build, continue, query, delete."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from align_jax.embed import embedder
from align_jax.embed.model import load
from align_jax.errors import InputError
from align_jax.pictures import read_picture
from align_jax.search import __main__ as search
from align_jax.search import indexing
from align_jax.search.collection import Entry, Folder, Records, open_collection
from align_jax.search.indexing import index_pictures, thumbnail
from align_jax.search.vector_index import (
    Description,
    IndexSource,
    create_index,
    open_index,
)
from align_jax.weights.folder import digest
from tests import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(tiny.write_model(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name in tiny.NAMES[:6]:
        (folder / f"{name}.png").write_bytes(tiny.draw(name, 90))
    (folder / "deep" / "it's.PNG").write_bytes(tiny.draw("blue top", 90))
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "secret.png").write_bytes(tiny.draw("red top", 10))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["search", *map(str, arguments)])
    search.main()
    return capsys.readouterr().out.splitlines()


def test_a_folder_is_built_asked_changed_and_built_again(
    source, pictures, tmp_path, monkeypatch, capsys
):
    place = tmp_path / "index"
    build = (
        "build",
        f"--checkpoint={source}",
        f"--images={pictures}",
        f"--out={place}",
    )

    def tell(*arguments):
        return run(monkeypatch, capsys, *arguments)

    told, broken, left_out = tell(*build)
    assert told == (
        f"{place}: 7 pictures; 7 added, 0 there already, 0 deleted, 1 unreadable"
    )
    assert broken.startswith("  broken.jpg: ")
    links = "links that lead out of the folder: 1"
    assert left_out == f"  left out: files that end in .txt: 1; {links}"
    path = pictures / "deep" / "it's.PNG"
    query = ("query", place, f"--image={path}")
    first, *others = tell(*query, "--limit=3")
    assert first == f"1.0000  deep/it's.PNG  {path}"
    assert len(others) == 2
    assert tell(*query, "--limit=3", "--exact") == [first, *others]
    plain = tell("query", place, "--text=red left")
    assert len(plain) == 7
    assert tell("query", place, "--text=red left", "--text_weight=0.5") == plain
    assert tell("query", place, "--text=red left", "--minus=blue") != plain

    pictures = pictures.rename(tmp_path / "moved")
    build = (*build[:2], f"--images={pictures}", build[3])
    path = pictures / "deep" / "it's.PNG"
    query = (*query[:2], f"--image={path}")
    os.remove(pictures / f"{tiny.NAMES[0]}.png")
    (pictures / f"{tiny.NAMES[1]}.png").write_bytes(tiny.draw("green bottom", 30))
    (pictures / "new.png").write_bytes(tiny.draw("green top", 90))
    told, *_, absent = tell(*build)
    assert "8 pictures; 2 added, 5 there already, 0 del" in told
    assert absent == (
        f"  pictures of the index that {pictures} lacks: 1; --prune deletes them"
    )
    assert "7 pictures; 0 added, 7 there already, 1 del" in tell(*build, "--prune")[0]
    (pictures / f"{tiny.NAMES[2]}.png").write_bytes(b"no picture any more")
    assert "6 pictures; 0 added, 6 there already, 0 del" in tell(*build)[0]
    (pictures / f"{tiny.NAMES[2]}.png").write_bytes(tiny.draw(tiny.NAMES[2], 90))
    assert "7 pictures; 1 added, 6 there already, 0 del" in tell(*build)[0]
    assert tell("delete", place, "new.png", "none") == [f"{place}: 1 of 2 deleted"]
    assert tell(*query, "--limit=1") == [f"1.0000  deep/it's.PNG  {path}"]


def test_a_dataset_s_pictures_have_its_ids_and_texts(source, tmp_path):
    row = {"image": tiny.picture(0), "text": tiny.text("red left")}
    other = {"image": tiny.picture(1), "text": tiny.text("red right")}
    dataset = tiny.write_dataset(
        tmp_path / "data", "train", [[row], [other]], tiny.PAIR_FEATURES
    )
    collection = open_collection(f"{dataset}:train")
    assert isinstance(collection, Records)
    assert len(collection) == 2
    model = load(source, batch_size=2)
    found = Description(digest(model.weights), source, model.width, 0)
    place = IndexSource(collection.prefix, collection.labels)
    index = create_index(str(tmp_path / "index"), found, place)

    def build(entries):
        return index_pictures(model, entries, index, lambda count: None)

    assert build(collection).added == 2
    assert build(open_collection(dataset)).kept == 2
    found = index.rows(["train/00000000", "train/00000001"], "text")
    assert [row["text"] for row in found.values()] == ["red left", "red right"]
    (hit,) = index.search(model.encode_images([tiny.draw(tiny.NAMES[0], 90)])[0], 1)
    assert hit.path == f"{dataset}:train/train/00000000"
    other = {"image": tiny.picture(2), "text": tiny.text("red top")}
    changed = tiny.write_dataset(
        tmp_path / "changed", "train", [[row], [other]], tiny.PAIR_FEATURES
    )
    done = build(open_collection(changed))
    assert (done.added, done.kept, len(index)) == (1, 1, 2)


def test_a_collection_has_its_dataset_s_labels(pictures, tmp_path):
    dataset = tiny.write_evaluation(tmp_path / "data")
    assert open_collection(f"{dataset}:test").labels == tuple(tiny.COLOURS)
    row = {"image": tiny.picture(0), "text": tiny.text("red left")}
    plain = tiny.write_dataset(tmp_path / "plain", "train", [[row]], tiny.PAIR_FEATURES)
    assert open_collection(plain).labels == open_collection(str(pictures)).labels == ()


def test_a_killed_build_goes_on(source, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "AT_ONCE", 2)
    model = load(source, batch_size=2)
    description = Description(digest(model.weights), source, model.width, 16)
    index = create_index(str(tmp_path / "index"), description)
    entries, seen = [*Folder(str(pictures))], []

    def stop(count):
        seen.append(count)
        if sum(seen) >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_pictures(model, entries, index, stop)
    index = open_index(str(tmp_path / "index"))
    there = len(index)
    assert 0 < there < 7
    done = index_pictures(model, entries, index, seen.append)
    assert (done.kept, done.added) == (there, 7 - there)
    assert len(index) == 7
    assert [*done.unreadable] == ["broken.jpg"]
    (row,) = index.rows(["deep/it's.PNG"], "thumbnail").values()
    assert Image.open(io.BytesIO(row["thumbnail"])).size == (12, 12)


def test_each_picture_is_decoded_once_and_has_its_own_row(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr(indexing, "AT_ONCE", 3)  # no multiple of the batches
    decoded, read = [], embedder.read_picture

    def noted(content, *arguments, **options):
        decoded.append(content)
        return read(content, *arguments, **options)

    monkeypatch.setattr(embedder, "read_picture", noted)
    model = load(source, batch_size=2)
    description = Description(digest(model.weights), source, model.width, 16)
    index = create_index(str(tmp_path / "index"), description)
    files = [tiny.draw(name, 90) for name in tiny.NAMES[:8]]
    files[2:2], files[6:6] = [b"broken"], [b"", b"broken"]
    entries = [Entry(f"{i}", "", f"text {i}", file) for i, file in enumerate(files)]
    counts = []
    done = index_pictures(model, entries, index, counts.append)
    assert sorted(decoded) == sorted(files)
    assert (sum(counts), done.added, len(index)) == (11, 8, 8)
    assert {*done.unreadable} == {"2", "6", "7"}
    assert done.unreadable["7"].startswith("is no picture")
    monkeypatch.undo()
    for name, row in index.rows(
        [entry.id for entry in entries], "text", "thumbnail", "embedding"
    ).items():
        file = files[int(name)]
        assert row["text"] == f"text {name}"
        assert row["thumbnail"] == thumbnail(read_picture(file), 16)
        expected = model.encode_images([file])[0]
        np.testing.assert_allclose(row["embedding"], expected, atol=1e-5)


def test_a_thumbnail_is_small_and_on_white():
    pixels = np.zeros((300, 600, 4), np.uint8)
    pixels[:, :300] = (255, 0, 0, 255)
    small = Image.open(io.BytesIO(thumbnail(pixels, 100)))
    assert (small.format, small.size) == ("JPEG", (100, 50))
    assert small.getpixel((90, 25))[2] > 250 > 5 > small.getpixel((10, 25))[2]
    assert thumbnail(pixels, 0) == b""


def test_bad_input_is_refused(source, pictures, tmp_path, monkeypatch, capsys):
    def refused(message, *arguments):
        with pytest.raises(InputError, match=message):
            run(monkeypatch, capsys, *arguments)

    model = f"--checkpoint={source}"
    out = f"--out={tmp_path / 'out'}"
    refused("no TFDS dataset in .*none", "build", model, "--images=none", out)
    (tmp_path / "empty").mkdir()
    empty = f"--images={tmp_path / 'empty'}"
    refused("empty has no picture, by the names' endings", "build", model, empty, out)
    refused("no index in .*out'", "query", tmp_path / "out", "--text=a")
    refused("--limit is 0", "query", tmp_path / "out", "--text=a", "--limit=0")
    assert not (tmp_path / "out").exists()
    create_index(str(tmp_path / "out"), Description("other", source, 4, 0))
    refused("the index is of another model", "query", tmp_path / "out", "--text=a")
    refused("none.jpg is missing", "query", tmp_path / "out", "--image=none.jpg")
    images = f"--images={pictures}"
    refused("is an index of another kind", "build", model, images, out)
    raw = os.fsdecode(f"{tmp_path}/caf".encode() + b"\xe9")
    message = r"caf\\udce9 is no place for an index; wanted a path of UTF-8"
    refused(message, "build", model, images, f"--out={raw}")
    refused(message, "query", raw, "--text=a")
