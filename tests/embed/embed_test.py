import io
import itertools
import json
import os
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align_jax.embed import __main__ as embed
from align_jax.embed.model import Model, load
from align_jax.embed.shards import embed_shards, list_shards
from align_jax.errors import InputError, run_command
from tests import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def model(source):
    return load(source, batch_size=8)


def picture(seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 14, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write(path, images, **more):
    names = pa.array([f"{path.stem}-{i}" for i in range(len(images))], pa.string())
    image = pa.array(images, pa.binary())
    pq.write_table(pa.table({"image_id": names, "image": image} | more), path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Writes three files: one of several batches, one empty, one with bad pictures."""
    folder = tmp_path_factory.mktemp("shards")
    write(folder / "a.parquet", [picture(i) for i in range(41)])
    write(folder / "b.parquet", [])
    bad = [None, b"no picture", picture(70), picture(71)[:100], picture(72, "JPEG")]
    write(folder / "c.parquet", bad, other=pa.array(range(5)))
    return folder


@pytest.fixture(scope="module")
def embedded(model, shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "embeddings"
    return folder, embed_shards(model, list_shards([str(shards)]), folder, 8)


def test_every_picture_has_a_row_in_its_order(model, shards, embedded):
    folder, unreadable = embedded
    names = ["a.parquet", "b.parquet", "c.parquet"]
    assert sorted(os.listdir(folder)) == [*names, "model.json"]
    for name in names:
        pictures, found = (pq.read_table(f / name) for f in (shards, folder))
        assert found["image_id"].equals(pictures["image_id"])
        assert found.schema.names == ["image_id", "embedding"]
        assert found.schema.field("embedding").type == pa.list_(pa.float32(), 80)
    whole = pq.read_table(folder / "a.parquet")["embedding"].to_pylist()
    expected = model.encode_images([picture(i) for i in range(41)])
    np.testing.assert_array_equal(np.array(whole, np.float32), expected)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    assert len(np.unique(expected.round(3), axis=0)) == 41

    broken = pq.read_table(folder / "c.parquet")["embedding"].to_pylist()
    assert [row is None for row in broken] == [True, True, False, True, False]
    alone = model.encode_images([picture(72, "JPEG")])
    np.testing.assert_allclose(broken[4], alone[0], atol=1e-6)
    assert sorted(unreadable) == [f"c.parquet: c-{i}" for i in (0, 1, 3)]
    assert "cut short" in unreadable["c.parquet: c-3"]
    described = json.loads((folder / "model.json").read_text())
    assert described["width"] == model.width == 80


def test_texts_are_embedded_beside_their_pictures(model, tmp_path):
    texts = [["red left", "blue"], [], None, [None, "", "green top"]]
    lists = pa.array(texts, pa.list_(pa.string()))
    images = [picture(0), b"no picture", picture(1), picture(2)]
    write(tmp_path / "a.parquet", images, texts=lists)
    listed, out = list_shards([str(tmp_path / "a.parquet")], True), tmp_path / "out"
    embed_shards(model, listed, out, 8, texts=True)
    found = pq.read_table(out / "a.parquet")
    rows = found["text_embeddings"].to_pylist()
    assert [*map(len, rows)] == [2, 0, 0, 3]
    flat = np.array([row for some in rows for row in some], np.float32)
    expected = model.encode_texts(["red left", "blue", "", "", "green top"])
    np.testing.assert_array_equal(flat, expected)
    assert found["embedding"].null_count == 1
    with pytest.raises(InputError, match=r"has the columns .* wanted .*: remove it"):
        embed_shards(model, listed, out, 8)
    for column, message in (
        (pa.array(["x"] * 4), "column 'texts' of .* is string; wanted lists of"),
        (pa.array([[1]] * 4), "column 'texts' of .* wanted lists of strings"),
    ):
        write(tmp_path / "bad.parquet", images, texts=column)
        with pytest.raises(InputError, match=message):
            list_shards([str(tmp_path / "bad.parquet")], True)
    write(tmp_path / "bad.parquet", images)
    with pytest.raises(InputError, match=r"lacks the columns \['texts'\]"):
        list_shards([str(tmp_path / "bad.parquet")], True)


def test_pictures_that_cannot_be_read_are_an_error_unless_asked_for(model):
    with pytest.raises(InputError, match="picture 1 is no picture"):
        model.encode_images([picture(0), b"bad"])
    reasons = {}
    found = model.encode_images([picture(0), b"bad", picture(1)], reasons)
    assert [*reasons] == [1]
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(
        found[[0, 2]], model.encode_images([picture(0), picture(1)])
    )


def test_no_input_gives_no_rows_and_no_class_is_refused(model):
    width = model.width
    for found in (
        model.encode_images([]),
        model.encode_images(iter(())),
        model.encode_texts([]),
        model.encode_texts(np.array([], str)),
        model.embedder.project_texts(()),
    ):
        assert (found.shape, found.dtype) == ((0, width), np.float32)
    tower = model.weights.config.image_tower.output_width
    assert model.embedder.image_features([]).shape == (0, tower)
    assert model.classify([], ["red", "blue"]).shape == (0, 2)
    with pytest.raises(InputError, match=r"^0 classes .* wanted one class or more"):
        model.classify([picture(0)], [])
    with pytest.raises(InputError, match=r"^1 classes have \[0\] prompts"):
        model.classify([picture(0)], ["red"], templates=())
    for template in ("a picture", "{} {}", "{name}", "{"):
        with pytest.raises(InputError, match=r"wanted a sentence with one {}"):
            model.classify([picture(0)], ["red"], [template])
    for names, templates in (("red", ["{}"]), (["red"], "{}")):
        with pytest.raises(InputError, match="wanted a list of texts"):
            model.classify([picture(0)], names, templates)
    with pytest.raises(InputError, match="texts is 'red'; wanted a list of texts"):
        model.encode_texts("red")


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_of_nothing_is_refused(source, size):
    with pytest.raises(InputError, match=f"batch_size is {size}; wanted 1 or more"):
        load(source, size)


def test_a_killed_command_goes_on_at_the_first_file_missing(
    model, shards, embedded, tmp_path, monkeypatch
):
    stream, calls = Model.stream_images, itertools.count()

    def killed(*arguments):
        if next(calls) == 2:  # a file is a call, and the third file is c
            raise KeyboardInterrupt
        return stream(*arguments)

    monkeypatch.setattr(Model, "stream_images", killed)
    listed, out = list_shards([str(shards)]), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        embed_shards(model, listed, out, 8)
    assert sorted(os.listdir(out)) == ["a.parquet", "b.parquet", "model.json"]
    before = (out / "a.parquet").stat().st_mtime_ns
    monkeypatch.undo()
    done = []
    embed_shards(model, listed, out, 8, done.append)
    assert (out / "a.parquet").stat().st_mtime_ns == before
    assert done == [41, 0, 5]
    for name in os.listdir(embedded[0]):
        assert (out / name).read_bytes() == (embedded[0] / name).read_bytes()


def test_a_folder_of_something_else_is_left_alone(model, shards, embedded, tmp_path):
    listed, copy = list_shards([str(shards)]), tmp_path / "copy"
    other = load(tiny.write_model(tmp_path / "other", seed=1), batch_size=8)
    with pytest.raises(InputError, match="holds embeddings of another model"):
        embed_shards(other, listed, embedded[0], 8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(InputError, match="full is there and holds no embeddings"):
        embed_shards(model, listed, tmp_path / "full", 8)
    shutil.copytree(embedded[0], copy)
    write(tmp_path / "a.parquet", [picture(0)])
    changed = list_shards([str(tmp_path / "a.parquet")])
    with pytest.raises(InputError, match=r"has 41 embeddings, but .* 1 pictures"):
        embed_shards(model, changed, copy, 8)


def test_files_are_named_by_folder_pattern_or_path(shards, tmp_path):
    shutil.copy(shards / "a.parquet", tmp_path / "held_out")
    found = list_shards([str(shards / "[ab].parquet"), str(tmp_path / "held_out")])
    assert [(s.name, s.rows) for s in found] == [
        ("a.parquet", 41),
        ("b.parquet", 0),
        ("held_out.parquet", 41),
    ]


def test_bad_files_are_refused_before_anything_is_written(shards, tmp_path):
    def refused(message, *sources):
        with pytest.raises(InputError, match=message):
            list_shards([str(source) for source in sources])

    refused("no pictures at .*nowhere", tmp_path / "nowhere")
    refused("no pictures at", tmp_path)
    (tmp_path / "text.parquet").write_text("no table")
    refused("text.parquet is not a Parquet file", tmp_path)
    pq.write_table(pa.table({"image_id": ["x"]}), tmp_path / "text.parquet")
    refused(r"lacks the columns \['image'\]; it has", tmp_path)
    table = pa.table({"image_id": ["x"], "image": ["x.png"]})
    pq.write_table(table, tmp_path / "text.parquet")
    refused("column 'image' of .* is string; wanted binary", tmp_path)
    shutil.copy(shards / "a.parquet", tmp_path / "a")
    refused("would both become a.parquet", shards, tmp_path / "a")


def test_a_damaged_file_ends_in_an_error_and_leaves_nothing(model, shards, tmp_path):
    content = bytearray((shards / "a.parquet").read_bytes())
    content[200:4000] = bytes(3800)
    (tmp_path / "a.parquet").write_bytes(content)
    listed = list_shards([str(tmp_path / "a.parquet")])
    with pytest.raises(InputError, match=r"a\.parquet is damaged"):
        embed_shards(model, listed, tmp_path / "out", 8)
    assert os.listdir(tmp_path / "out") == ["model.json"]


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["embed", *map(str, arguments)])
    return run_command("align_jax.embed", embed.main)


def test_the_command_embeds_and_ends_in_one_line(
    source, shards, embedded, tmp_path, monkeypatch, capsys
):
    model, images = f"--model={source}", f"--images={shards}"
    out = f"--out={tmp_path / 'out'}"
    assert command(monkeypatch, model, images, out, "--batch_size=8") == 0
    printed = capsys.readouterr().out
    assert "46 pictures of 3 files, 0 of them there already" in printed
    assert "3 without an embedding" in printed
    assert "c.parquet: c-0 is no" in printed
    for name in os.listdir(embedded[0]):
        assert (tmp_path / "out" / name).read_bytes() == (
            embedded[0] / name
        ).read_bytes()
    assert command(monkeypatch, model, images, out) == 0
    assert "3 of them there already" in capsys.readouterr().out
    odd, other = tmp_path / "a\x1bb.parquet", f"--out={tmp_path / 'odd'}"
    write(odd, [None])
    assert command(monkeypatch, model, f"--images={odd}", other) == 0
    assert r"  a\x1bb.parquet: a\x1bb-0 is no" in capsys.readouterr().out
    assert command(monkeypatch, model, "--check") == 0
    assert "embeddings of 80 numbers" in capsys.readouterr().out
    for arguments, message in (
        ([model, images], "wanted --images=PARQUET and --out=FOLDER, or --check"),
        ([model, images, out, "--batch_size=0"], "--batch_size is 0"),
        ([f"--model={tmp_path}", images, out], "is a folder without any"),
        ([model, "--images=nowhere", out], "no pictures at nowhere"),
    ):
        assert command(monkeypatch, *arguments) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1


def test_a_child_ends_with_the_command_that_started_it(
    source, shards, tmp_path, monkeypatch, capsys
):
    parents = itertools.chain([7, 7], itertools.repeat(1))
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    arguments = [f"--model={source}", f"--images={shards}", f"--out={tmp_path / 'out'}"]
    assert command(monkeypatch, *arguments, "--batch_size=8", "--child") == 2
    assert "the command that started this one has ended" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["model.json"]


def test_a_missing_package_ends_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert command(monkeypatch, "--model=x", "--check") == 2
    printed = capsys.readouterr().err
    assert "package 'tqdm' is missing: install align-jax" in printed
    assert printed.count("\n") == 1


def test_pictures_are_read_at_most_two_batches_ahead(
    model, shards, tmp_path, monkeypatch
):
    ahead, stream = [], Model.stream_images

    def noted(self, images, reasons):
        taken = done = 0

        def count():
            nonlocal taken
            for image in images:
                taken += 1
                yield image

        for rows in stream(self, count(), reasons):
            ahead.append(taken - done)
            done += len(rows)
            yield rows

    monkeypatch.setattr(Model, "stream_images", noted)
    listed = list_shards([str(shards / "a.parquet")])
    embed_shards(model, listed, tmp_path / "out", 8)
    assert ahead == [16, 16, 16, 16, 9, 1]
