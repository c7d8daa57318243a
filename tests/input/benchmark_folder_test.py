import csv
import re

import numpy as np
import pytest

from align_jax.errors import InputError
from align_jax.input import benchmark_folder as folder
from align_jax.input.association_set import read_cues, read_pictures
from tests import tiny, wds
from tests.places_test import run


def test_a_set_in_a_bucket_is_read_as_on_a_disk(tmp_path):
    classes = wds.write_classes(tmp_path / "classes", groups=3)
    captions = wds.write_captions(tmp_path / "captions")
    run(f"""
import pathlib
from align_jax.input import benchmark_folder as folder

root = pathlib.Path({str(tmp_path)!r})
for path in root.rglob("*.*"):
    places.write_bytes(f"gs://bucket/{{path.relative_to(root)}}", path.read_bytes())
near = folder.BenchmarkPictures({classes!r}, "test", 12)
far = folder.BenchmarkPictures("gs://bucket/classes", "test", 12)
assert [*near] == [*far] and far.names == near.names and far.count == 12
assert [row.tolist() for row in far.metadata] == [row.tolist() for row in near.metadata]
assert far.metadata[4].tolist() == [1, 7, 1]
assert far.some([7, 0]) == near.some([0, 7])
pairs = folder.read_captions("gs://bucket/captions", "test")
assert pairs == folder.read_captions({captions!r}, "test")
assert pairs[0][1] == ["red left", "the red left"]
assert folder.read_type("gs://bucket/captions") == folder.RETRIEVAL
assert folder.read_templates("gs://bucket/classes") == ["{{0}}", "{{0}} left"]
""")


def test_files_of_other_systems_are_read(tmp_path):
    """They have a byte order mark, CRLF, empty last lines, or files that macOS adds."""
    mark = b"\xef\xbb\xbf"
    directory = wds.write_classes(tmp_path / "set")
    root = tmp_path / "set"
    (root / "classnames.txt").write_bytes(mark + b"red\r\ngreen \r\nbl\xc3\xbc\r\n\r\n")
    (root / "zeroshot_classification_templates.txt").write_bytes(
        mark + b"{c}: a {c}\r\n{{}} {c}\r\n"
    )
    (root / "test" / "nshards.txt").write_bytes(mark + b" 2 \r\n\r\n")
    (root / "test" / "._0.tar").write_bytes(b"Mac")
    pictures = folder.BenchmarkPictures(directory, "test", 12)
    assert pictures.names == ["red", "green", "blü"]
    assert len([*pictures]) == 12
    filled = [line.format("red") for line in folder.read_templates(directory)]
    assert filled == ["red: a red", "{} red"]
    (root / "dataset_type.txt").write_bytes(mark + b"Retrieval\r\n")
    assert folder.read_type(directory) == folder.RETRIEVAL


def test_empty_lines_are_no_captions(tmp_path):
    text = b"\xef\xbb\xbfone\r\n\r\ntwo \n \n\n"
    samples = [{"jpg": b"x", "txt": text}]
    directory = wds.write_set(tmp_path / "set", samples, {}, shards=1)
    assert folder.read_captions(directory, "test") == [(b"x", ["one", "two "])]
    samples = [{"jpg": b"x", "txt": b"\n \r\n"}]
    directory = wds.write_set(tmp_path / "empty", samples, {}, shards=1)
    with pytest.raises(InputError, match=r"sample 0 of .*0.tar has no caption"):
        folder.read_captions(directory, "test")


@pytest.mark.parametrize("content", ["9" * 5000, "99999999", "-1", "0"])
def test_a_number_of_tars_is_bounded(tmp_path, content):
    wds.write_classes(tmp_path / "set")
    (tmp_path / "set" / "test" / "nshards.txt").write_text(content)
    with pytest.raises(
        InputError, match=r"holds .*; wanted a number of tars"
    ) as caught:
        folder.BenchmarkFolder(str(tmp_path / "set"), "test")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "array",
    [
        np.array([np.nan]),
        np.array([0.5], np.float16),
        np.array([-np.inf]),
        np.array([2**63 + 1], np.uint64),
    ],
)
def test_groups_are_whole_numbers(array):
    with pytest.raises(InputError, match=r"sample 3 has .* in its npy; wanted whole"):
        folder.whole_numbers(array, "sample 3")


def test_whole_numbers_of_any_type_are_groups():
    for kind in (np.bool_, np.float16, np.uint8, np.int64):
        found = folder.whole_numbers(np.array([1, 0], kind), "")
        assert found.dtype == np.int64
        assert found.tolist() == [1, 0]


CUE = ("red", tiny.NAMES[:5], tiny.NAMES[:2])


@pytest.fixture
def usual_field_size():
    """Sets Python's limit on a field of a CSV file, which other code may raise."""
    before = csv.field_size_limit(131_072)
    yield
    csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * 200_000 + ",[],[]", r"is no readable CSV \(field larger than"),
        (f'x,"{"[" * 100_000}",[]', "line 2 of .* does not hold cue, candidates"),
        ('x,"[1]","[1]"', "line 2 of .* is 1; wanted a text"),
    ],
)
def test_a_damaged_table_of_cues_is_refused(tmp_path, usual_field_size, text, message):
    directory = wds.write_cues(tmp_path / "set", [CUE])
    table = tmp_path / "set" / "winogavil_dataset.csv"
    content = table.read_bytes().replace(b"ID,", b"").replace(b"\n0,", b"\n")
    table.write_bytes(b"\xef\xbb\xbf" + content)
    (cue,) = read_cues(directory)
    assert (cue.word, cue.candidates) == CUE[:2]
    table.write_text(f"cue,candidates,associations\n{text}\n")
    with pytest.raises(InputError, match=message):
        read_cues(directory)


@pytest.mark.parametrize(("byte", "value"), [(8, 1), (10, 99)])
def test_an_archive_that_zipfile_refuses_is_one_line(tmp_path, byte, value):
    """The flag of encryption is in byte 8 of an entry, the compression in byte 10."""
    directory = wds.write_cues(tmp_path / "set", [CUE])
    path = tmp_path / "set" / "winogavil_images.zip"
    content = bytearray(path.read_bytes())
    for entry in re.finditer(b"PK\x01\x02", bytes(content)):
        content[entry.start() + byte] = value
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"winogavil_images.zip is damaged: "):
        [*read_pictures(directory, tiny.NAMES[:1])]
