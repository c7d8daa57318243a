"""Tests of clean drawings: their texts, their pictures and their splits."""

import collections
import dataclasses
import io
import json
import pathlib
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from align_jax.errors import InputError
from align_jax.input.evaluation_records import evaluation_records
from data import recipes
from data.samples import emoji_drawings
from data.samples.clean_clipart import (
    NEAR_BITS,
    SIDE,
    CleanDrawing,
    choose_texts,
    clean_text,
    group_drawings,
    reduce_picture,
    split_drawings,
)
from data.samples.openclipart import MANY_PICTURES, Drawing
from data.samples.recipe_splits import evaluation_rows, half_of
from tests.data.samples.clipart_test import BOMB, WORK

WORDS = """cat dog tree hat cup fish boat moon car bus ship cake king queen rook horse
    lamp desk door key lock pen book 犬 дом""".split()


def drawing(path: pathlib.Path, title="a cat", description="", tags="") -> Drawing:
    return Drawing(path, path.name, title, description, tags, "en")


def picture(side=(200, 100), box=(20, 20, 120, 80), mode="RGBA") -> bytes:
    """Draws a black box on nothing, as a PNG file."""
    image = Image.new(mode, side)
    ImageDraw.Draw(image).rectangle(box, "black" if mode == "RGBA" else "white")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def noise(seed: int) -> bytes:
    """Draws squares of random greys, as a PNG file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 16), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((160, 80), Image.Resampling.NEAREST).save(
        file, "PNG"
    )
    return file.getvalue()


def clip(url: str, phash: int = 0) -> CleanDrawing:
    return CleanDrawing(url, (url,), url.encode(), phash)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Addressed_Envelope  With Stamp", "Addressed Envelope With Stamp"),
        ("stop sign 03.", "stop sign"),
        ("BlueMan#102", "BlueMan"),
        ("cone (2)", "cone"),
        ("a cat, from http://x.org/cat.html by a@b.c", "a cat, from by"),
        ("tree_01.svg", "tree"),
        ("tree.svg", ""),
        ("Clipart by Nicu Buculei - antenna", ""),
        ("Part of the Flat Icon Collection (Wed Aug 25 23:29:46 2004)", ""),
        ("imagery", "imagery"),  # a whole word is compared
        ("42", ""),
        ("A", ""),
        ("", ""),
        ("犬", "犬"),
        ("красный дом 2", "красный дом"),
        ("\uff23\uff21\uff34", "CAT"),  # full width
        ("شجرة", "شجرة"),
        (" ".join(["word"] * 21), ""),
        (" ".join(["word"] * 20), " ".join(["word"] * 20)),
    ],
)
def test_a_clean_text_says_what_is_drawn(raw, clean):
    assert clean_text(raw) == clean


def test_texts_of_many_pictures_are_dropped_and_titles_are_needed():
    root = pathlib.Path()
    shared = [drawing(root / f"s{i}", "Star") for i in range(MANY_PICTURES)]
    once = [
        drawing(root / "a", "one_cat 1", "a thin cat", "Star"),
        drawing(root / "b", "", "a description alone"),
        drawing(root / "c", "two cats", "two cats 7", "cats, two"),
    ]
    found = choose_texts([*shared, *once[1:]])
    assert found == {d.url: ("Star",) for d in shared} | {
        "c": ("two cats", "cats, two")
    }
    # The tags of `a` make one picture too many.
    assert choose_texts([*shared, once[0]]) == {"a": ("one cat", "a thin cat")}


def test_pictures_are_reduced_and_refused_by_reason(tmp_path):
    def reduce(content: bytes):
        path = tmp_path / "x.png"
        path.write_bytes(content)
        return reduce_picture(drawing(path))

    content, phash = reduce(picture((4 * SIDE, 2 * SIDE), (99, 99, 300, 300)))
    reduced = Image.open(io.BytesIO(content))
    assert (reduced.size, reduced.mode) == ((SIDE, SIDE // 2), "RGBA")
    # Black on nothing is seen on white: another box has another hash.
    assert phash != reduce(picture((4 * SIDE, 2 * SIDE), (400, 9, 700, 90)))[1]
    assert reduce(picture((400, 90))) == "small or narrow"
    assert reduce(picture((60, 60), (9, 9, 20, 20))) == "small or narrow"
    assert reduce(picture(box=(300, 300, 310, 310))) == "blank"
    assert reduce(picture()[:90]) == "cut short"
    assert reduce(b"x.png") == "not a picture"
    assert reduce(b"") == "empty"


def test_drawings_that_look_alike_are_one_group():
    near, far = (1 << NEAR_BITS) - 1, (1 << (NEAR_BITS + 1)) - 1
    drawings = [
        clip("png/a/cat_01.png", 0),
        clip("png/b/dog.png", near),
        clip("png/a/cat_02.png", -1),  # all 64 bits differ: the file's name is alike
        clip("png/b/cat_01.png", 0x5555 << 20),
        clip("png/c/hat.png", ~near),  # near to cat_02
        clip("png/c/far.png", far << 40),
    ]
    assert sorted(group_drawings(drawings)) == [[0, 1, 2, 4], [3], [5]]
    assert group_drawings([]) == []


def test_no_group_crosses_a_split_and_shares_are_kept():
    random = np.random.default_rng(0)
    hashes = random.integers(-(2**63), 2**63 - 1, 1000)
    drawings = [
        clip(f"png/{'ab'[j]}{i}/x.png", int(hashes[i]) ^ (j << i % 60))
        for i in range(1000)
        for j in range(2)
    ]
    for seed in (0, 1):
        splits = split_drawings(drawings, seed)
        assert sorted(i for part in splits.values() for i in part) == [*range(2000)]
        side = {i: name for name, indices in splits.items() for i in indices}
        assert all(side[i] == side[i + 1] for i in range(0, 2000, 2))
        for name in ("choose", "report"):
            assert 0.11 < len(splits[name]) / 2000 < 0.19
    assert splits != split_drawings(drawings, 0)
    # A drawing's split does not depend on the others.
    few = split_drawings(drawings[:200], seed)
    assert few["report"] == [i for i in splits["report"] if i < 200]


def test_choose_and_report_share_no_drawing_with_each_other_or_training():
    concepts = emoji_drawings.list_concepts()
    pictures = {
        path: str(path).encode()
        for concept in concepts
        for path in concept.drawings.values()
    }
    random = np.random.default_rng(0)
    hashes = random.integers(-(2**63), 2**63 - 1, 500)
    clipart = [clip(f"png/{i}/x.png", int(h)) for i, h in enumerate(hashes)]
    rows = evaluation_rows(concepts, pictures, clipart, seed=0)
    assert [*rows] == [
        f"{half}_{part}"
        for half in ("choose", "report")
        for part in ("unseen_drawing", "unseen_concept", "clipart")
    ]
    sets = {
        half: [row for name, part in rows.items() if half in name for row in part]
        for half in ("choose", "report")
    }
    shown = {half: {row[0] for row in part} for half, part in sets.items()}
    assert not shown["choose"] & shown["report"]
    texts = {half: {row[1] for row in part} for half, part in sets.items()}
    assert not texts["choose"] & texts["report"]
    train = {clipart[i].picture for i in split_drawings(clipart, 0)["train"]}
    assert not train & (shown["choose"] | shown["report"])
    sizes = {half: len(part) for half, part in sets.items()}
    assert 0.8 < sizes["choose"] / sizes["report"] < 1.25
    assert {half_of(0, concept) for concept in concepts} == {"choose", "report"}


@pytest.fixture
def root(tmp_path):
    """Makes a folder of clean drawings, `WORDS`, and of some that cannot be used."""
    root = tmp_path / "root"

    def add(name: str, svg: str = "", content: bytes | None = None, **fields) -> None:
        empty = {"title": "", "description": "", "tags": "", "language": "en"}
        for kind in ("svg", "png"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        svg = svg or WORK.format(**empty | fields)
        (root / "svg" / f"{name}.svg").write_text(svg)
        if content is not None:
            (root / "png" / f"{name}.png").write_bytes(content)

    for i, word in enumerate(WORDS):
        add(f"{word}/x", title=f"{word}_1", content=noise(i))
    add("犭/x", title="another dog", content=noise(0))
    add("alone/x", title="without a picture")
    add("broken/x", svg="<svg><metadata>", content=picture())
    add("bomb/x", svg=BOMB + "]>" + WORK.replace("{title}", "&a12;"), content=b"")
    add("torn/x", title="a torn picture", content=picture()[:90])
    return root


def test_the_command_writes_pairs_and_sets_once(root, tmp_path, monkeypatch, capsys):
    few = emoji_drawings.list_concepts()[300:340]
    monkeypatch.setattr(recipes, "list_concepts", lambda: few)
    out = tmp_path / "out"
    command = ["recipes", f"--out={out}", f"--root={root}"]
    monkeypatch.setattr(sys, "argv", command)
    recipes.main()
    counts = json.loads((out / "summary.json").read_text())
    assert counts == {
        "drawings": 30,
        "no_picture": 1,
        "broken_svg": 2,
        "no_clean_title": 0,
        "the same picture again": 1,
        "picture cut short": 1,
        "clean drawings": 25,
        "clean texts": 25,
    }
    pairs = pq.read_table(out / "pairs" / "openclipart.parquet").to_pylist()
    trained = collections.Counter(row["alt_text"] for row in pairs)
    held_out = {
        text.decode(): record["image"]
        for half in ("choose", "report")
        for record in evaluation_records(str(out / "evaluation"), f"{half}_clipart")
        for text in record["texts"]
    }
    assert {*trained, *held_out} == {*WORDS}
    assert not {*trained} & {*held_out}
    assert not {row["image"] for row in pairs} & {*held_out.values()}
    emoji = pq.read_table(out / "pairs" / "emoji.parquet")
    assert emoji.schema == pq.read_schema(out / "pairs" / "openclipart.parquet")
    assert "openclipart-svg" in (out / "ATTRIBUTION.md").read_text()
    capsys.readouterr()
    recipes.main()
    assert "nothing to do" in capsys.readouterr().out


def test_missing_packages_and_unclean_drawings_are_errors(root, tmp_path, monkeypatch):
    out = tmp_path / "out"
    command = ["recipes", f"--out={out}", f"--root={tmp_path / 'none'}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(InputError, match="apt-get install openclipart-png"):
        recipes.main()
    assert not out.exists()
    shared = dataclasses.replace(drawing(root / "x"), title="Part of a collection")
    monkeypatch.setattr(recipes, "read_drawings", lambda *_: [shared])
    counts: collections.Counter = collections.Counter()
    with pytest.raises(InputError, match=r"clean title \(no_clean_title 1\)"):
        recipes.read_clipart(root, counts)
