import dataclasses
import hashlib
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from align_jax.errors import InputError
from data.corpus.ingest import identify
from data.doctor import __main__ as doctor
from data.doctor.__main__ import diagnose
from data.doctor.records import READERS
from data.records import records
from data.records.formats import RECORD_FORMATS
from tests import tiny

PICTURES = [tiny.draw(name, 2) for name in tiny.NAMES]
IDS = [identify(picture) for picture in PICTURES]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red"]


def make_rows(numbers):
    return [
        {
            "image": PICTURES[n],
            "text": f"text {n}".encode(),
            "image_id": IDS[n].encode(),
            "key": n - 5,
        }
        for n in numbers
    ]


def write(folder, splits, **manifest):
    """Writes a build's folder; each split of {split: rows} has two shards."""
    records_folder = folder / "records"
    records_folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "report.json").write_text("{}")
    written = {
        split: records.write_split(
            records_folder,
            "tiny",
            split,
            [records.make_example(**row) for row in rows],
            len(rows),
            shards=2,
        )
        for split, rows in splits.items()
    }
    features = records.corpus_features()
    records.write_metadata(records_folder, "tiny", features, written)
    text = "\n".join(TOKENS) + "\n"
    (records_folder / "vocabulary.txt").write_text(text)
    content = {
        "pairs_kept": sum(map(len, splits.values())),
        "vocabulary_size": len(TOKENS),
        "vocabulary_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "shards": [dataclasses.asdict(s) for split in written.values() for s in split],
        **manifest,
    }
    (records_folder / "manifest.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def corpus(tmp_path):
    return write(tmp_path / "corpus", {"train": make_rows(range(8))}, images_kept=8)


def shard_of(corpus, number=0, split="train"):
    return corpus / "records" / f"tiny-{split}.tfrecord-0000{number}-of-00002"


def only(findings, *whats):
    assert [finding.what for finding in findings] == list(whats)
    return findings[0]


def test_a_sound_corpus_has_no_findings(corpus, capsys):
    assert diagnose(corpus) == []
    assert diagnose(corpus / "records") == []
    found = capsys.readouterr().out
    assert "no findings; splits train; 2 shards, 8 records read" in found
    assert "8 pictures decoded" in found
    assert diagnose(corpus, sample=3) == []
    assert "8 records read, 3 pictures decoded" in capsys.readouterr().out


def test_a_dataset_that_no_build_wrote_is_read_too(corpus, capsys):
    for name in ("manifest.json", "vocabulary.txt"):
        (corpus / "records" / name).unlink()
    (corpus / "config.json").unlink()
    assert diagnose(corpus / "records") == []
    assert "not checked: hashes of shards" in capsys.readouterr().out


def test_the_fix_builds_the_records_again(corpus):
    (corpus / "records" / "manifest.json").unlink()
    finding = only(diagnose(corpus), "manifest.json")
    assert finding.fix.startswith(
        f"rm -rf {corpus}/records {corpus}/report.json && python -m data.build"
        f" --config=CONFIG --workdir={corpus}"
    )


def test_missing_additional_and_cut_shards(corpus):
    content = shard_of(corpus, 1).read_bytes()
    shard_of(corpus, 1).rename(corpus / "records" / "tiny-train.tfrecord-old")
    missing = only(diagnose(corpus), "missing shard", "additional shard")
    assert missing.where == str(shard_of(corpus, 1))
    (corpus / "records" / "tiny-train.tfrecord-old").unlink()
    shard_of(corpus, 1).write_bytes(content[:-5])
    cut, damaged = diagnose(corpus)
    assert (cut.what, damaged.what) == ("shard cut short", "damaged records")
    assert cut.found == f"{len(content) - 5} bytes"
    assert cut.wanted == f"{len(content)} bytes"
    offset = len(content) - len(records.make_example(**make_rows([7])[0])) - 16
    assert f"offset {offset} (cut short" in damaged.where


def test_a_flipped_bit_is_located_and_the_records_after_it_are_read(corpus, capsys):
    content = bytearray(shard_of(corpus).read_bytes())
    second = len(records.make_example(**make_rows([0])[0])) + 16
    content[second + 50] ^= 1
    shard_of(corpus).write_bytes(content)
    changed, damaged = diagnose(corpus)
    assert (changed.what, damaged.what) == ("changed shard", "damaged records")
    assert (
        changed.wanted
        == json.loads((corpus / "records" / "manifest.json").read_text())["shards"][0][
            "sha256"
        ]
    )
    assert f"offset {second} (its CRC is wrong)" in damaged.where
    assert "7 records read" in capsys.readouterr().out


def test_counts_of_manifest_metadata_and_files_are_compared(corpus):
    manifest = corpus / "records" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["shards"][1]["records"] = 5
    manifest.write_text(json.dumps(content))
    finding = only(diagnose(corpus), "dataset_info.json")
    assert (finding.found, finding.wanted) == ("4 records", "5 records (manifest)")
    content["shards"][1]["records"] = 4
    manifest.write_text(json.dumps({**content, "pairs_kept": 9, "images_kept": 7}))
    finding = only(diagnose(corpus), "pairs_kept", "images_kept")
    assert (finding.found, finding.wanted) == ("8", "9")
    manifest.write_text('{"shards": [{"name": "x"}]}')
    assert "manifest.json" in [finding.what for finding in diagnose(corpus)]
    manifest.write_text("{")
    assert "manifest.json" in [finding.what for finding in diagnose(corpus)]
    manifest.unlink()
    with tf.io.TFRecordWriter(str(shard_of(corpus))) as writer:
        writer.write(records.make_example(**make_rows([0])[0]))
    _, finding = diagnose(corpus)
    assert (finding.what, finding.found) == ("records", "1")
    assert finding.wanted == "4 (dataset_info.json)"


def test_dataset_info_that_cannot_be_read(corpus):
    (corpus / "records" / "dataset_info.json").write_text("{")
    assert "dataset_info.json" in [finding.what for finding in diagnose(corpus)]
    (corpus / "records" / "dataset_info.json").unlink()
    only(diagnose(corpus), "dataset_info.json")


def test_undecodable_pictures_and_empty_texts_are_named(tmp_path):
    rows = make_rows(range(8))
    rows[1]["image"] = PICTURES[1][:60]
    rows[2]["text"] = b"  "
    corpus = write(tmp_path / "corpus", {"train": rows})
    first, second = diagnose(corpus)
    assert (first.what, first.found) == ("undecodable pictures", "1")
    assert (second.what, second.found) == ("empty texts", "1")
    offset = len(records.make_example(**rows[0])) + 16
    assert f"{shard_of(corpus)}, offset {offset} (" in first.where
    assert "as the build wrote them" in first.fix
    assert "rm " not in first.fix
    following = offset + len(records.make_example(**rows[1])) + 16
    assert second.where == f"{shard_of(corpus)}, offset {following}"
    only(diagnose(corpus, sample=1), "empty texts")  # only record 0 is decoded


def test_what_is_no_example_is_a_damaged_record(corpus):
    with tf.io.TFRecordWriter(str(shard_of(corpus))) as writer:
        writer.write(b"\xff\xff\xff")
    found = {finding.what: finding for finding in diagnose(corpus)}
    assert "offset 0 (not a tf.train.Example)" in found["damaged records"].where


def test_vocabulary(corpus):
    path = corpus / "records" / "vocabulary.txt"
    path.write_text("\n".join([*TOKENS[1:], "red"]) + "\n")
    findings = diagnose(corpus)
    only(findings, *["vocabulary"] * 3)
    assert findings[0].found.startswith("sha256")
    assert findings[1].found == "token 0 is '[UNK]'"
    assert findings[2].found == "1 tokens twice or more: ['red']"
    path.write_text("[PAD]\nred\n")
    found = [finding.found for finding in diagnose(corpus)][1:]
    assert found == ["2 tokens", "no [UNK], [CLS], [SEP]"]
    path.unlink()
    assert only(diagnose(corpus), "vocabulary").found == "no such file"


@pytest.mark.parametrize("order", [[0, 2, 1, 3, 4, 5], [3, 4, 5, 0, 1, 2]])
def test_keys_must_ascend_within_and_over_shards(tmp_path, order):
    corpus = write(tmp_path / "corpus", {"train": make_rows(order)})
    finding = only(diagnose(corpus), "order")
    shard = 0 if order[0] == 0 else 1
    assert shard_of(corpus, shard).name in finding.where


def test_repeated_pairs_are_located(tmp_path):
    rows = make_rows([0, 1, 2, 2, 2, 3])
    other = {**rows[0], "text": b"another text of it"}
    corpus = write(tmp_path / "corpus", {"train": [rows[0], other, *rows[1:]]})
    finding = only(diagnose(corpus), "duplicates")
    assert finding.found == "2 repeated pairs"
    assert shard_of(corpus, 1).name + " at 0" in finding.where


def test_a_picture_in_two_splits_is_leakage_under_any_id(tmp_path):
    held_out = make_rows([3, 6, 7])
    held_out[0]["image_id"] = b"renamed"
    splits = {"train": make_rows(range(6)), "test": held_out}
    corpus = write(tmp_path / "corpus", splits)
    finding = only(diagnose(corpus), "leakage")
    assert finding.found == "1 pictures also in 'train'"
    assert shard_of(corpus, 0, "test").name + " at 0" in finding.where


def test_leakage_from_an_evaluation_parquet_or_dataset(corpus, tmp_path):
    parquet = tmp_path / "queries.parquet"
    pq.write_table(pa.table({"image_id": [IDS[6], IDS[9]]}), parquet)
    finding = only(diagnose(corpus, evaluations=(parquet,)), "leakage")
    assert finding.found == f"1 pictures of {parquet}"
    assert shard_of(corpus, 1).name in finding.where
    assert f"config.evaluation_images to {parquet}" in finding.fix
    clean = write(tmp_path / "clean", {"test": make_rows([8, 9])})
    assert diagnose(corpus, evaluations=(clean,)) == []
    other = write(tmp_path / "other", {"test": make_rows([9, 0])})
    only(diagnose(corpus, evaluations=(other / "records",)), "leakage")
    shard_of(other, 0, "test").unlink()
    with pytest.raises(InputError, match=r"is damaged; run `python -m data\.doctor"):
        diagnose(corpus, evaluations=(other,))


def test_every_format_has_a_writer_and_a_reader():
    assert (*records.WRITERS,) == (*READERS,) == RECORD_FORMATS


def test_array_record_files_are_read(tmp_path):
    from array_record.python import array_record_module

    folder = tmp_path / "arrays"
    write(tmp_path / "made", {"train": make_rows(range(4))})
    (tmp_path / "made" / "records").rename(folder)
    for name in ("manifest.json", "vocabulary.txt"):
        (folder / name).unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "array_record"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for path in folder.glob("*.tfrecord-*"):
        name = str(path).replace(".tfrecord-", ".array_record-")
        writer = array_record_module.ArrayRecordWriter(name, "group_size:1")
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            writer.write(record)
        writer.close()
        path.unlink()
    assert tfds.builder_from_directory(str(folder)).info.splits["train"].num_examples
    assert diagnose(folder) == []
    shard = folder / "tiny-train.array_record-00001-of-00002"
    shard.write_bytes(shard.read_bytes()[:300])
    only(diagnose(folder), "records", "damaged records")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["doctor", *map(str, arguments)])
    return doctor.main()


def test_exit_codes(corpus, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, corpus) == 0
    (corpus / "records" / "vocabulary.txt").unlink()
    assert run(monkeypatch, corpus) == 1
    found = capsys.readouterr().out
    for word in ("1. vocabulary", "found ", "wanted ", "where ", "fix ", "1 finding;"):
        assert word in found
    assert run(monkeypatch, tmp_path / "nowhere") == 2
    assert "data.doctor: no dataset in" in capsys.readouterr().err
    assert run(monkeypatch, corpus, "--evaluation", tmp_path / "no.parquet") == 2
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "no_ids.parquet")
    assert run(monkeypatch, corpus, "--evaluation", tmp_path / "no_ids.parquet") == 2
    assert "wanted a Parquet file with a column image_id" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, corpus, "--sample", "-1")
    assert ended.value.code == 2


def test_an_unfinished_build_is_a_finding(corpus, tmp_path):
    (corpus / "records").rename(tmp_path / "elsewhere")
    finding = only(diagnose(corpus), "dataset_info.json")
    assert "python -m data.build" in finding.fix
    with pytest.raises(InputError, match="no dataset in"):
        diagnose(tmp_path)
