import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align_jax.errors import InputError
from align_jax.evaluation.runner import make_evaluators
from align_jax.input.aro_set import LEAST, ORDERS, SYMMETRIC, cut_picture
from align_jax.pictures import read_picture
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect

SIDE = 12  # of a tiny drawing
# The picture, the wrong caption and the relation of each instance.
RELATIONS = [
    ("red left", "red right", "on"),
    ("red right", "red left", "on"),
    ("green left", "green top", "to the left of"),
    ("green right", "green left", "near"),  # symmetric, so it does not count
]
PAIRS = [("red left", "left red", ["red", "left"])] * LEAST
PAIRS += [("blue top", "top blue", ["blue", "top"])] * (LEAST - 1)


class CutEncoder(FixedEncoder):
    """Knows drawings by their pixels, and counts the pictures that it embeds."""

    def __init__(self, wrong=()):
        known = dict(wrong)
        super().__init__(lambda name: perfect(known.get(name, name)), perfect)
        self.pixels = {read_picture(p).tobytes(): n for p, n in self.names.items()}
        self.count = 0

    def stream_images(self, pictures):
        for picture in pictures:
            self.count += 1
            name = self.pixels[read_picture(picture).tobytes()]
            yield np.float32([self.images(name)])


class FlatEncoder(CutEncoder):
    """Maps everything to one point."""

    def encode_texts(self, texts):
        return np.float32([perfect("red left")] * len(texts))


def draw_both(names):
    """Returns a PNG file with two drawings side by side."""
    both = [read_picture(tiny.draw(name, 110)) for name in names]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(both, 1)).save(file, "PNG")
    return file.getvalue()


def describe(rows, group):
    """Yields (file, picture, entry) of each instance; two have one picture."""
    for number, (name, wrong, value) in enumerate(rows):
        place = tiny.NAMES.index(name)
        pair = tiny.NAMES[place - place % 2 :][:2]
        box = {"x": SIDE * (place % 2), "y": 0, "w": SIDE, "h": SIDE}
        entry = {"image_id": number, "true_caption": name, "false_caption": wrong}
        yield f"{place // 2}.png", draw_both(pair), entry | {group: value}, box


def write_authors(root, rows=RELATIONS, part="relation", group="relation_name"):
    """Writes the authors' files of a part; returns the fields of the evaluator."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for file, picture, entry, box in describe(rows, group):
        (root / "images" / file).write_bytes(picture)
        entry |= {f"bbox_{name}": value for name, value in box.items()}
        entries.append(entry | {"image_path": file})
    (root / f"visual_genome_{part}.json").write_text(json.dumps(entries))
    return {"format": f"aro_{part}", "directory": str(root)}


def write_snapshot(root, rows=RELATIONS, part="relation", group="relation_name"):
    """Writes the same as Parquet files; returns the fields of the evaluator."""
    table = [
        entry
        | {"image": {"bytes": picture, "path": file}}
        | {"bbox": {name: float(value) for name, value in box.items()}}
        for file, picture, entry, box in describe(rows, group)
    ]
    write_parquet(root, table)
    return {"format": f"aro_{part}", "directory": str(root)}


def write_parquet(root, rows):
    (root / "data").mkdir(parents=True)
    for number, part in enumerate((rows[:2], rows[2:])):
        path = root / "data" / f"test-0000{number}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(part), path)


def write_order(root):
    """Writes three captions, two of one picture, each with four other orders."""
    rows = []
    for name, captions in (
        ("red left", ("red left", "green left", "top", "red", "left")),
        ("red left", ("red", "green", "blue", "green top", "blue left")),
        ("blue top", ("blue top", "blue", "top", "blue left", "red top")),
    ):
        picture = {"bytes": tiny.draw(name, 110), "path": None}
        rows.append(dict(zip(ORDERS, captions, strict=True)) | {"images": picture})
    write_parquet(root, rows)
    return {"format": "aro_order", "directory": str(root)}


def make(**fields):
    return make_evaluators({"set": {"kind": "selection", **fields}})["set"]


def run(encoder, **fields):
    return dict(make(**fields).run(encoder))


@pytest.mark.parametrize("write", [write_authors, write_snapshot])
def test_relations_count_alike(tmp_path, write):
    fields = write(tmp_path)
    # Wrong for one of the two "on" and for the symmetric relation.
    wrong = {"red right": "red left", "green right": "green left"}
    assert run(CutEncoder(wrong), **fields, expected=4) == {
        "text_acc": (1 / 2 + 1) / 2,
        "plain_text_acc": 2 / 4,
        "on_text_acc": 1 / 2,
        "to_the_left_of_text_acc": 1.0,
        "text_chance": 1 / 2,
        "on_text_queries": 2,
        "to_the_left_of_text_queries": 1,
        "queries": 4,
    }
    assert run(CutEncoder(), **fields)["plain_text_acc"] == 1
    found = run(FlatEncoder(dict.fromkeys(tiny.NAMES, "red left")), **fields)
    assert found["text_acc"] == found["plain_text_acc"] == 0


@pytest.mark.parametrize("write", [write_authors, write_snapshot])
def test_pairs_of_attributes_count_from_25_instances_on(tmp_path, write):
    # "red left" and "left red" have one embedding here, so each instance is a tie.
    fields = write(tmp_path, PAIRS, "attribution", "attributes")
    encoder = CutEncoder()
    found = run(encoder, **fields, expected=2 * LEAST - 1)
    assert found["red_left_text_acc"] == found["text_acc"] == 0
    assert found["red_left_text_queries"] == LEAST
    assert "blue_top_text_acc" not in found
    assert encoder.count == 2  # each picture once
    rows = [(name, "green", pair) for name, _, pair in PAIRS]
    fields = write(tmp_path / "others", rows, "attribution", "attributes")
    assert run(encoder, **fields)["text_acc"] == 1
    fields = write(tmp_path / "few", PAIRS[1:], "attribution", "attributes")
    with pytest.raises(InputError, match=r"has no pair of attributes 25 times"):
        make(**fields)


def test_the_right_one_of_five_orders(tmp_path):
    fields = write_order(tmp_path)
    encoder = CutEncoder()
    found = run(encoder, **fields, expected=3)
    # "blue left" is less close to the picture "red left" than "red" is.
    assert found["text_acc"] == found["ties_in_order_text_acc"] == 1
    assert found["text_chance"] == pytest.approx(1 / 5)
    assert encoder.count == 2  # each picture once
    found = run(CutEncoder({"blue top": "blue left"}), **fields)
    assert found["text_acc"] == pytest.approx(2 / 3)
    found = run(FlatEncoder(), **fields)
    assert found["text_acc"] == 0
    assert found["ties_in_order_text_acc"] == 1  # the authors' argmax
    with pytest.raises(InputError, match=r"has 3 instances; wanted 25,010"):
        make(**fields, expected=25_010)


def test_a_box_is_cut_as_pillow_does():
    random = np.random.default_rng(0)
    file = io.BytesIO()
    pixels = random.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    found = read_picture(cut_picture(file.getvalue(), (5, 3, 17, 9), "it"))
    np.testing.assert_array_equal(found, pixels[3:9, 5:17])
    found = read_picture(cut_picture(file.getvalue(), (25, -2, 34, 4), "it"))
    np.testing.assert_array_equal(found[2:, :5], pixels[:4, 25:])
    assert not found[:2].any()
    assert not found[:, 5:].any()
    for box in ((30, 0, 40, 10), (0, -9, 5, 0)):
        with pytest.raises(InputError, match=r"it is 30 x 20 pixels; its box .* outsi"):
            cut_picture(file.getvalue(), box, "it")


def test_the_symmetric_relations_are_those_of_the_authors():
    found = json.loads(SYMMETRIC.read_text())["symmetric"]
    assert len(found) == len({*found}) == 157
    assert {"near", "next to", "with", "of"} < {*found}
    assert not {"on", "to the left of", "riding", "holding"} & {*found}


def change(path, **fields):
    entries = json.loads(path.read_text())
    entries[1] |= fields
    path.write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"true_caption": 3}, r"entry 1 of .*relation.json is 3; wanted a text"),
        ({"relation_name": None}, r"relation_name of entry 1 of .* is None; wanted a"),
        ({"relation_name": []}, r"relation_name of entry 1 of .* is \[\]; wanted a na"),
        ({"relation_name": " _"}, r"relation_name of entry 1 of .* is ' _'; wanted a "),
        ({"image_path": "9.png"}, r"images lacks 1 of 3 pictures, among them 9.png"),
        ({"bbox_w": 0}, r"entry 1 of .* has the box \[12, 0, 0, 12\]; wanted x, y, w"),
        ({"bbox_h": "12"}, r"has the box \[12, 0, 12, '12'\]; wanted x, y, width and"),
        ({"bbox_h": None}, r"has the box \[12, 0, 12, None\]; wanted x, y, width"),
        ({"bbox_x": 1e300, "bbox_w": 1e300}, r"has the box \[1e\+300, 0, 1e\+300, 12"),
        ({"bbox_x": 1e308, "bbox_w": 1e308}, r"has the box \[1e\+308, 0, 1e\+308, 12"),
        ({"bbox_w": float("nan")}, r"has the box \[12, 0, nan, 12\]; wanted x, y, wid"),
        ({"bbox_w": 10**9}, r"has the box \[12, 0, 1000000000, 12\]; wanted x, y, wi"),
    ],
)
def test_other_entries_are_refused(tmp_path, fields, message):
    described = write_authors(tmp_path)
    change(tmp_path / "visual_genome_relation.json", **fields)
    with pytest.raises(InputError, match=message):
        make(**described)


def test_parts_whose_names_differ_in_underscores_stay_apart(tmp_path):
    fields = write_authors(tmp_path)
    change(tmp_path / "visual_genome_relation.json", relation_name="to_the left of")
    parts = make(**fields, expected=4)._set.parts
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "on": [0],
        "to_the left of": [1],
        "to the left of": [2],
    }


def test_other_counts_files_and_columns_are_refused(tmp_path):
    fields = write_authors(tmp_path)
    with pytest.raises(InputError, match=r"has 4 instances; wanted 23,937"):
        make(**fields, expected=23_937)
    change(tmp_path / "visual_genome_relation.json", bbox_x=24)
    with pytest.raises(InputError, match=r"the picture of entry 1 is 24 x 12 pixels; "):
        run(CutEncoder(), **fields)
    path = tmp_path / "visual_genome_relation.json"
    for content, message in (
        ("{}", r"relation.json holds a dict; wanted a list"),
        ("[3]", r"entry 0 of .*relation.json is 3; wanted an object"),
        ("[", r"relation.json is not valid JSON"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            make(**fields)
    path.unlink()
    with pytest.raises(InputError, match=r"visual_genome_relation.json is missing"):
        make(**fields)
    with pytest.raises(InputError, match=r"has symmetric relations only"):
        make(**write_authors(tmp_path, RELATIONS[3:]))
    fields = write_snapshot(tmp_path / "snapshot")
    with pytest.raises(InputError, match=r"has no column 'attributes'; its colum"):
        make(**fields | {"format": "aro_attribution"})
    with pytest.raises(InputError, match=r"has no column 'correct_caption'; its col"):
        make(**fields | {"format": "aro_order"})
