"""Damage in files of each format is refused, or counted and replaced."""

import errno
import io
import itertools
import json
import pathlib
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax import tar_index
from align_jax.errors import InputError
from align_jax.input.datasets import DatasetConfig, open_dataset
from align_jax.input.formats import webdataset
from align_jax.input.formats.parquet import RowReader
from data.index import index_dataset, main
from data.records.records import (
    WRITERS,
    describe_shard,
    image_feature,
    make_example,
    shard_name,
    write_metadata,
    write_shard,
)
from tests import tiny
from tests.input.batches import batches, numbers, open_batches
from tests.input.written import (
    pairs_of,
    write_array_records,
    write_parquet,
    write_tar,
    write_tars,
)

PICTURE = tiny.draw("red top", 3)


def samples(count):
    return [{"png": PICTURE, "txt": f"pair {i}".encode()} for i in range(count)]


def count_replaced(part, steps=6):
    """The tokens of some steps of 16 pairs, and the replaced pairs by reason."""
    drawn = open_batches({"a": part}, batch=16, max_replaced=0.2)
    found = list(itertools.islice(drawn, steps))
    drawn.close()
    return numbers(found), dict(drawn.replaced)


def test_broken_samples_of_tars_are_replaced_and_counted(tmp_path):
    rows = samples(48)
    rows[3]["png"] = PICTURE[:60]
    del rows[14]["txt"]
    rows[25] = {"txt": b"pair 25"}
    rows[36]["txt"] = b" \n"
    rows[47] = {"cls": b"1"}
    write_tar(tmp_path / "0.tar", rows)
    index_dataset(str(tmp_path), workers=1)
    found, replaced = count_replaced(DatasetConfig(str(tmp_path), "webdataset"))
    assert replaced == {"cut short": 2, "no text": 4, "empty": 4}  # in two epochs
    assert not {3, 14, 25, 36, 47, -1} & {*found}
    assert len(found) == 96


def test_broken_rows_of_parquet_are_replaced_and_counted(tmp_path):
    texts = [[f"pair {i}"] for i in range(48)]
    texts[2], texts[3] = None, [None, ""]
    images = [PICTURE] * 48
    images[4] = None
    table = pa.table({"image": images, "text": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    found, replaced = count_replaced(DatasetConfig(str(tmp_path), "parquet"))
    assert replaced == {"no text": 4, "empty": 2}
    assert not {2, 3, 4} & {*found}


def test_labels_of_tars_and_parquet(tmp_path):
    rows = [{"png": PICTURE, "cls": str(i % 5).encode()} for i in range(16)]
    rows[3]["cls"] = b"?"
    rows[4]["cls"] = str(2 - 2**32).encode()  # 2 in its last 32 bits
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "0.tar", rows)
    index_dataset(str(tmp_path / "tars"), workers=1)
    wrong = {3: None, 4: 2 - 2**32}
    labels = pa.array([wrong.get(i, i % 5) for i in range(16)])
    table = pa.table({"image": [PICTURE] * 16, "cls": labels})
    (tmp_path / "rows").mkdir()
    pq.write_table(table, tmp_path / "rows" / "a.parquet")
    for folder, name in (("tars", "webdataset"), ("rows", "parquet")):
        part = DatasetConfig(str(tmp_path / folder), name, label_feature="cls")
        drawn = open_batches({"a": part}, batch=16, max_replaced=0.2)
        found = [sorted(next(drawn)["labels"]) for _ in range(3)]
        drawn.close()
        assert drawn.replaced == {"no label": 6}
        assert all(len({*labels}) == 5 for labels in found)


def test_columns_in_structs_lists_and_dictionaries(tmp_path):
    texts = [[{"raw": f"pair {i}"}] for i in range(20)]
    names = pa.array([f"pair {i}" for i in range(20)]).dictionary_encode()
    table = pa.table({"image": [PICTURE] * 20, "sentences": texts, "name": names})
    pq.write_table(table, tmp_path / "a.parquet")
    for name in ("sentences/raw", "name"):
        part = DatasetConfig(str(tmp_path), "parquet", text_feature=name)
        assert sorted(numbers(batches({"a": part}, 5, batch=4))) == [*range(20)]


def test_any_rows_of_structs_with_a_field_of_nulls_are_read(tmp_path):
    images = [{"bytes": b"%d" % i, "path": None} if i % 7 else None for i in range(90)]
    table = pa.table({"image": images, "text": [f"pair {i}" for i in range(90)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=40)
    read = RowReader("image", ["text"], False)
    for first, last in ((0, 90), (3, 7), (39, 81), (89, 90)):
        rows = [*read(str(tmp_path / "a.parquet"), first, last)]
        expected = [b"%d" % i if i % 7 else b"" for i in range(first, last)]
        assert [image for image, _ in rows] == expected
        assert rows[-1][1] == [[b"pair %d" % (last - 1)]]


def test_a_tar_that_is_cut_short_gives_its_whole_samples(tmp_path, caplog, capsys):
    write_tar(tmp_path / "0.tar", samples(20))
    content = (tmp_path / "0.tar").read_bytes()
    index = tar_index.scan_tar(str(tmp_path / "0.tar"))
    inside = index.offsets[17, index.endings.index("png")] + 10
    (tmp_path / "0.tar").write_bytes(content[:inside])
    index_dataset(str(tmp_path), workers=1)
    said = "0.tar: it ends inside 000017.png; its 17 samples before that are used"
    assert said in capsys.readouterr().out
    dataset = open_dataset(DatasetConfig(str(tmp_path), "webdataset"))
    assert [shard.records for shard in dataset.shards] == [17]
    assert said in caplog.text


def test_a_failure_of_the_storage_is_no_damage_of_a_tar(tmp_path, monkeypatch):
    write_tar(tmp_path / "0.tar", samples(20))

    class Failing(io.FileIO):
        def read(self, size=-1):
            if self.tell() > 10_000:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    monkeypatch.setattr(pathlib.Path, "open", lambda path, mode: Failing(path))
    with pytest.raises(InputError, match=r"0.tar cannot be read: .*Input/output error"):
        tar_index.scan_tar(str(tmp_path / "0.tar"))


def test_an_error_of_a_reader_does_not_blame_the_shard(tmp_path, monkeypatch):
    write_tars(tmp_path / "tars", pairs_of([24]))
    part = DatasetConfig(str(tmp_path / "tars"), "webdataset")
    drawn = open_batches({"a": part})
    monkeypatch.setattr(webdataset, "_as_texts", lambda value: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        list(itertools.islice(drawn, 12))
    drawn.close()


def test_a_shard_that_is_damaged_in_a_run_ends_it_with_its_name(tmp_path):
    write_tars(tmp_path / "tars", pairs_of([24, 24]))
    write_parquet(tmp_path / "rows", pairs_of([24, 24]))
    for folder, name in (("tars", "webdataset"), ("rows", "parquet")):
        drawn = open_batches({"a": DatasetConfig(str(tmp_path / folder), name)})
        for path in (tmp_path / folder).iterdir():
            if path.suffix in (".tar", ".parquet"):
                content = path.read_bytes()
                path.write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=rf"{folder}/.* is damaged: .*copy it aga"):
            list(itertools.islice(drawn, 12))
        drawn.close()


def refusal(part):
    with pytest.raises(InputError) as caught:
        open_dataset(part)
    return str(caught.value)


def test_tars_without_a_current_index_are_refused_with_the_command(tmp_path):
    part = DatasetConfig(str(tmp_path), "webdataset")
    write_tar(tmp_path / "0.tar", samples(3))
    command = f"run `python -m data.index {tmp_path}`"
    assert refusal(part) == f"{tmp_path} has no index of its tars: {command}"
    assert index_dataset(str(tmp_path), workers=1) == [str(tmp_path / "0.tar")]
    assert len(open_dataset(part).shards) == 1
    write_tar(tmp_path / "1.tar", samples(2))
    assert refusal(part) == f"{tmp_path}/1.tar is not in the index: {command}"
    # Only the new tar is read.
    assert index_dataset(str(tmp_path), workers=1) == [str(tmp_path / "1.tar")]
    assert [shard.records for shard in open_dataset(part).shards] == [3, 2]
    write_tar(tmp_path / "0.tar", samples(4))
    assert refusal(part) == f"{tmp_path}/0.tar is not as indexed: {command}"
    index_dataset(str(tmp_path), workers=2)
    assert [shard.records for shard in open_dataset(part).shards] == [4, 2]
    (tmp_path / "0.tar.index").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"0.tar.index is damaged"):
        batches({"a": part}, 8, batch=4)


def test_an_index_may_be_in_another_folder(tmp_path, capsys, monkeypatch):
    tars, out = tmp_path / "tars", tmp_path / "index"
    tars.mkdir()
    write_tar(tars / "0.tar", samples(8))
    monkeypatch.setattr("sys.argv", ["index", str(tars), "--out", str(out)])
    assert main() == 0
    assert "1 tars, 8 samples: 8 .png, 8 .txt" in capsys.readouterr().out
    part = DatasetConfig(str(tars), "webdataset", index=str(out))
    assert sorted(numbers(batches({"a": part}, 1))) == [*range(8)]
    assert [path.name for path in tars.iterdir()] == ["0.tar"]
    (out / "index.json").unlink()
    assert refusal(part).endswith(f"run `python -m data.index {tars} --out {out}`")
    with pytest.raises(InputError, match=r"cannot be written to .*another folder with"):
        index_dataset(str(tars), str(tars / "0.tar"), workers=1)


def test_members_and_fields_that_no_sample_has_are_named(tmp_path):
    fields = json.dumps({"caption": "a", "url": "b"}).encode()
    write_tar(tmp_path / "0.tar", [s | {"json": fields} for s in samples(3)])
    index_dataset(str(tmp_path), workers=1)

    def part(**names):
        return refusal(DatasetConfig(str(tmp_path), "webdataset", **names))

    members = "their members are json, png, txt"
    assert part(text_feature="cap.txt").endswith(f"has a member 'cap.txt'; {members}")
    assert part(image_feature="jpg").endswith(f"has a member 'jpg'; {members}")
    found = part(text_feature="json/text")
    assert found.endswith("no field text in their json; it has caption, url")


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("webdataset", "a.tar.gz", "a.tar.gz is compressed, so no member of it can be"),
        ("webdataset", "a.zip", "no files in .* with .tar or .tgz in a name"),
        ("parquet", "a.parquet", "a.parquet is no Parquet file, or is cut short: "),
        ("array_record", "a.array_record", "is damaged: "),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, name, file, message):
    (tmp_path / file).write_bytes(b"x" * 5000)
    assert re.search(message, refusal(DatasetConfig(str(tmp_path), name)))
    missing = DatasetConfig(str(tmp_path / "nowhere"), name)
    assert "no files in" in refusal(missing) or "is missing" in refusal(missing)


def test_hidden_files_are_not_read(tmp_path):
    write_parquet(tmp_path / "a", pairs_of([3]))
    (tmp_path / "a" / ".train-0.parquet.crc").write_bytes(b"a checksum")
    dataset = open_dataset(DatasetConfig(str(tmp_path / "a"), "parquet"))
    assert [shard.records for shard in dataset.shards] == [3]


def test_files_of_several_splits_are_refused_without_a_pattern(tmp_path):
    write_parquet(tmp_path / "a", pairs_of([3]))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a" / "test-0.parquet")
    found = refusal(DatasetConfig(str(tmp_path / "a"), "parquet"))
    assert re.search(r"several splits .*name those of one, as .*/a/test\*", found)
    dataset = open_dataset(DatasetConfig(str(tmp_path / "a" / "train-*"), "parquet"))
    assert [shard.records for shard in dataset.shards] == [3]


def test_columns_of_other_types_are_refused(tmp_path):
    table = pa.table({"image": ["path"], "text": [1], "other": [b"a"]})
    pq.write_table(table, tmp_path / "a.parquet")

    def part(**names):
        return refusal(DatasetConfig(str(tmp_path), "parquet", **names))

    assert "column 'image' of" in part()
    assert "is string; wanted a picture's bytes" in part()
    assert "is int64; wanted a text or a list" in part(image_feature="other")
    found = part(image_feature="other", label_feature="image")
    assert "is string; wanted one whole number" in found
    found = part(image_feature="other", text_feature="caption")
    assert found.endswith("no column 'caption'; its columns are image, text, other")


def test_array_records_in_tfds_layout_are_read_and_checked(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    pairs = pairs_of([20, 28])
    shards = []
    for number, part in enumerate(pairs):
        path = folder / shard_name("tiny", "train", number, 2, "array_record")
        examples = [make_example(image=i, text=t.encode()) for i, t in part]
        write_shard(path, examples, "array_record")
        shards.append(describe_shard(path, len(examples)))
    assert "array_record" in WRITERS
    features = {"image": image_feature(), "text": tiny.PAIR_FEATURES["text"]}
    features = tiny.tfds.features.FeaturesDict(features)
    write_metadata(folder, "tiny", features, {"train": shards}, "array_record")
    part = DatasetConfig(str(folder), "array_record")
    same = DatasetConfig(tiny.write_training(tmp_path / "same", [20, 28]))
    assert numbers(batches({"a": part}, 6)) == numbers(batches({"a": same}, 6))
    assert "array_record files; wanted tfrecord" in refusal(DatasetConfig(str(folder)))
    assert "no feature 'caption'" in refusal(
        DatasetConfig(str(folder), "array_record", text_feature="caption")
    )
    write_array_records(tmp_path / "short", pairs_of([3]))
    (tmp_path / "short" / "00000.array_record").replace(folder / shards[0].name)
    assert re.search("has 3 records, and .* says 20; copy it again", refusal(part))


def test_array_records_may_be_empty_but_not_cut_short(tmp_path):
    write_shard(tmp_path / "a.array_record", [], "array_record")
    write_array_records(tmp_path / "b", pairs_of([3]))
    (tmp_path / "b" / "00000.array_record").replace(tmp_path / "b.array_record")
    part = DatasetConfig(str(tmp_path), "array_record")
    assert [shard.records for shard in open_dataset(part).shards] == [3]
    content = (tmp_path / "b.array_record").read_bytes()
    for size in (0, 70_000):
        (tmp_path / "b.array_record").write_bytes(content[:size])
        assert "b.array_record is damaged: cut short" in refusal(part)


def test_array_records_of_other_messages_and_urls_are_refused(tmp_path):
    write_shard(tmp_path / "a.array_record", [b"\xff\xff"] * 3, "array_record")
    part = DatasetConfig(str(tmp_path), "array_record")
    assert "are no tf.train.Example; wanted records with image and tex" in refusal(part)
    part = DatasetConfig("gs://bucket/records", "array_record")
    assert "ArrayRecord files from local folders only" in refusal(part)
