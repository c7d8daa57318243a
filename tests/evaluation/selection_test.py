import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from align_jax.evaluation.runner import make_evaluators
from align_jax.input.selection_set import PARTS
from tests import tiny, wds
from tests.fixed_encoder import FixedEncoder, perfect, worse

# The captions of the first picture have one word of the second picture each.
CHOICES = [("red left", ["red left", "red top"]), ("blue top", ["blue top", "red top"])]


def write_sugar_crepe(root):
    """Writes two entries in six files and one in the last, and returns the fields."""
    (root / "data").mkdir(parents=True)
    (root / "val2017").mkdir()
    for part in PARTS:
        entries = {
            str(2 * number): {
                "filename": f"{name}.jpg",
                "caption": captions[0],
                "negative_caption": captions[1],
            }
            for number, (name, captions) in enumerate(CHOICES)
        }
        if part == PARTS[-1]:
            del entries["0"]
        (root / "data" / f"{part}.json").write_text(json.dumps(entries))
    for name in tiny.NAMES:
        (root / "val2017" / f"{name}.jpg").write_bytes(tiny.draw(name, 110))
    return {
        "format": "sugar_crepe",
        "directory": str(root / "data"),
        "pictures": str(root / "val2017"),
    }


def write_winoground(root, names=(("red left", "red top"), ("blue top", "red left"))):
    """Writes an instance for each two names, in two files, and returns the fields."""
    (root / "data").mkdir(parents=True)
    for number, pair in enumerate(names):
        row = {"id": number}
        for side, name in enumerate(pair):
            picture = {"bytes": tiny.draw(name, 110), "path": f"{name}.png"}
            row |= {f"image_{side}": picture, f"caption_{side}": name}
        path = root / "data" / f"test-0000{number}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist([row]), path)
    return {"format": "winoground", "directory": str(root)}


def make(**fields):
    return make_evaluators({"set": {"kind": "selection", **fields}})["set"]


def run(encoder=None, **fields):
    return dict(make(**fields).run(encoder or FixedEncoder(perfect, perfect)))


FLAT = FixedEncoder(lambda _: perfect("red left"), lambda _: perfect("red left"))


def test_sugar_crepe_is_read_in_place(tmp_path):
    fields = write_sugar_crepe(tmp_path)
    found = run(**fields, expected=13)
    assert found["text_acc"] == found["ties_in_order_text_acc"] == 1
    assert found["text_chance"] == 0.5
    assert found["queries"] == 13
    assert not [name for name in found if name.startswith(("image", "acc"))]
    for part in PARTS:
        assert found[f"{part}_text_acc"] == 1
        assert found[f"{part}_text_queries"] == 1 + (part != PARTS[-1])
    found = run(worse({"blue top": "red bottom"}), **fields)
    assert found["add_att_text_acc"] == 0.5
    assert found["swap_obj_text_acc"] == 0
    assert found["text_acc"] == pytest.approx(3 / 7)  # parts count alike
    found = run(FLAT, **fields)
    assert found["text_acc"] == 0
    assert found["ties_in_order_text_acc"] == 1  # as in CLIP_benchmark


def test_winoground_is_read_from_its_snapshot(tmp_path):
    fields = write_winoground(tmp_path)
    found = run(**fields, expected=2)
    for name in ("text_acc", "image_acc", "acc"):
        assert found[name] == found[f"ties_in_order_{name}"] == 1
    assert found["text_chance"] == found["image_chance"] == 0.25
    assert found["chance"] == pytest.approx(1 / 6)
    assert found["queries"] == 2
    # The picture is as close to both captions of the second instance, whose captions
    # find their pictures. Both pictures of the first one are equal.
    found = run(worse({"red left": "red top"}), **fields)
    assert found["text_acc"] == found["acc"] == 0
    assert found["image_acc"] == 0.5
    assert run(worse({"red left": "red bottom"}), **fields)["acc"] == 0.5
    assert run(FLAT, **fields)["ties_in_order_acc"] == 0


def test_the_right_caption_of_a_benchmark_folder_is_the_first(tmp_path):
    three = [(name, [*captions, "green left"]) for name, captions in CHOICES]
    for number, choices in enumerate((CHOICES, three)):
        directory = wds.write_choices(tmp_path / str(number), choices)
        found = run(directory=directory, expected=2)
        assert found["text_acc"] == 1
        assert found["text_chance"] == 1 / (2 + number)
        found = run(worse({"red left": "red top"}), directory=directory)
        assert found["text_acc"] == 0.5
    choices = [CHOICES[0], ("blue top", ["blue top"])]
    directory = wds.write_choices(tmp_path / "uneven", choices)
    with pytest.raises(InputError, match=r"have 1 or 2 captions; wanted the same numb"):
        make(directory=directory)
    directory = wds.write_choices(tmp_path / "one", choices[1:] * 2)
    with pytest.raises(InputError, match=r"have 1 captions; wanted the same number"):
        make(directory=directory)


def test_sets_of_other_counts_are_refused(tmp_path):
    sets = [
        (write_sugar_crepe(tmp_path / "sugar"), "13 instances; wanted 7,511"),
        (write_winoground(tmp_path / "winoground"), "2 instances; wanted 400"),
    ]
    for fields, message in sets:
        expected = int(message.split()[-1].replace(",", ""))
        with pytest.raises(InputError, match=message):
            make(**fields, expected=expected)


def test_damaged_sets_are_refused(tmp_path):
    fields = write_sugar_crepe(tmp_path / "sugar")
    (tmp_path / "sugar" / "val2017" / "blue top.jpg").unlink()
    with pytest.raises(
        InputError, match=r"lacks 1 of 2 pictures, among them blue top.jpg; "
    ):
        make(**fields)
    path = tmp_path / "sugar" / "data" / "swap_att.json"
    path.write_text('{"3": {"filename": "red left.jpg", "caption": "red"}}')
    with pytest.raises(
        InputError, match=r"entry 3 of .*swap_att.json is .*wanted file"
    ):
        make(**fields)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"swap_att.json has no entries"):
        make(**fields)
    path.unlink()
    with pytest.raises(InputError, match=r"swap_att.json is missing"):
        make(**fields)
    for wrong in (fields | {"pictures": ""}, {"directory": "x", "format": "wds"}):
        with pytest.raises(
            InputError, match=r"wanted a folder for sugar_crepe, and non"
        ):
            make(**{"pictures": "y"} | wrong)
    with pytest.raises(InputError, match=r"format is 'winogrond'; did you mean 'winog"):
        make(directory="x", format="winogrond")

    fields = write_winoground(tmp_path / "winoground")
    (path, _) = sorted((tmp_path / "winoground" / "data").iterdir())
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["caption_1"]), path)
    with pytest.raises(
        InputError, match=r"has no column 'caption_1'; its columns are i"
    ):
        make(**fields)
    place = table.schema.names.index("image_0")
    for column in (pa.array([None], pa.null()), pa.array(["a.png"])):
        pq.write_table(table.set_column(place, "image_0", column), path)
        with pytest.raises(InputError, match=r"row 0 of .* has no bytes in image_0"):
            run(**fields)
    pq.write_table(table.set_column(place, "image_0", pa.array([b"gif"])), path)
    with pytest.raises(KeyError, match="gif"):  # the bytes reach the encoder
        run(**fields)
    path.write_bytes(b"PAR1, or not")
    with pytest.raises(InputError, match=r"is no Parquet file, or is cut short: "):
        make(**fields)
    path.unlink()
    next((tmp_path / "winoground" / "data").iterdir()).unlink()
    with pytest.raises(InputError, match=r"no files in .*data with .parquet in a name"):
        make(**fields)


def test_embeddings_must_be_finite(tmp_path):
    fields = write_winoground(tmp_path)
    broken = FixedEncoder(lambda _: np.full(7, np.nan), perfect)
    with pytest.raises(FloatingPointError, match="the first is picture 0"):
        run(broken, **fields)
