import dataclasses
import gzip
import hashlib
import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from align_jax.errors import InputError, run_command
from align_jax.evaluation.evaluators.retrieval import Retrieval, RetrievalConfig
from data import eval_sets
from data.corpus.ingest import identify
from data.eval_sets import write_set
from data.evaluation_sets.captioned_sets import (
    COCO,
    COCO_TRAIN,
    DOCCI,
    EVALUATION_SETS,
    FLICKR30K,
    FLICKR30K_TRAIN,
    MULTI30K,
    URBAN1K,
)
from tests import tiny

TINY_FLICKR = dataclasses.replace(
    FLICKR30K,
    images={"test": 2, "val": 1},
    texts={"test": {"texts": 5}, "val": {"texts": 2}},
)
TINY_COCO = dataclasses.replace(COCO, images={"test": 2}, texts={"test": {"texts": 5}})
TINY_MULTI30K = dataclasses.replace(
    MULTI30K,
    images={"test": 2},
    texts={"test": {"texts_en": 10, "texts_de": 10, "texts_fr": 2, "texts_cs": 2}},
)


def download(source, facts):
    """Writes a miniature of the caption file and the pictures of a download."""
    images = []
    (source / facts.pictures).mkdir(parents=True)
    for number, split in enumerate(["train", "test", "val", "test"]):
        name = f"{number}.jpg"
        texts = [f"caption {number} {n}" for n in range(3 if number == 1 else 2)]
        sentences = [
            {"raw": f"{text}\u2028 ", "tokens": [], "sentid": 10 * number + n}
            for n, text in enumerate(texts)
        ]
        images.append({"split": split, "filename": name, "sentences": sentences})
        if split != "train":  # this set needs no training pictures
            picture = tiny.draw(tiny.NAMES[number], 1)
            (source / facts.pictures / name).write_bytes(picture)
    (source / facts.captions[0]).write_text(json.dumps({"images": images}))
    return source


@pytest.fixture
def source(tmp_path):
    return download(tmp_path / "downloads", TINY_FLICKR)


def edit(source, change):
    path = source / "dataset_flickr30k.json"
    content = json.loads(path.read_text())
    change(content["images"])
    path.write_text(json.dumps(content))


def test_the_true_counts_are_karpathys_and_multi30ks():
    assert set(EVALUATION_SETS) == {
        "coco",
        "coco_train",
        "docci",
        "flickr30k",
        "flickr30k_train",
        "multi30k",
        "urban1k",
    }
    assert (DOCCI.images, URBAN1K.images) == ({"test": 5000}, {"test": 1000})
    for facts in (DOCCI, URBAN1K):  # a description a picture
        assert facts.texts == {"test": {"texts": facts.images["test"]}}
    assert FLICKR30K_TRAIN.images == {"train": 29_000}
    assert FLICKR30K_TRAIN.texts == {"train": {"texts": 5 * 29_000}}
    assert COCO_TRAIN.images == {"train": 82_783, "restval": 30_504}
    captions = [of_split["texts"] for of_split in COCO_TRAIN.texts.values()]
    assert sum(captions) == 566_747  # of 113,287 pictures, the usual numbers
    assert FLICKR30K.images == {"test": 1000, "val": 1014}
    assert FLICKR30K.texts["test"] == {"texts": 5000}
    assert FLICKR30K.texts["val"] == {"texts": 5 * 1014}
    assert COCO.images == {"test": 5000}
    assert COCO.texts == {"test": {"texts": 25010}}
    assert MULTI30K.images == {"test": 1000}
    counts = {"texts_en": 5000, "texts_de": 5000, "texts_fr": 1000, "texts_cs": 1000}
    assert MULTI30K.texts["test"] == counts
    assert len(MULTI30K.captions) == 1 + 5 + 5 + 1 + 1


def test_the_retrieval_evaluator_reads_what_is_written(source, tmp_path):
    out = tmp_path / "flickr30k"
    write_set(TINY_FLICKR, source, out)
    read = Retrieval(RetrievalConfig(str(out), "test"))
    assert read.pictures == [tiny.draw(tiny.NAMES[n], 1) for n in (1, 3)]
    assert read.texts[:3] == [f"caption 1 {n}" for n in range(3)]
    assert read.pairs.tolist() == [[0, 0], [0, 1], [0, 2], [1, 3], [1, 4]]
    assert read.image_queries.all()
    assert read.text_queries.all()
    assert len(Retrieval(RetrievalConfig(str(out), "val")).texts) == 2


def test_records_keep_the_sources_names_and_the_manifest_its_hashes(source, tmp_path):
    out = tmp_path / "flickr30k"
    write_set(TINY_FLICKR, source, out)
    records = tfds.builder_from_directory(str(out)).as_dataset(split="test")
    first = next(iter(records.as_numpy_iterator()))
    assert first["file_name"] == b"1.jpg"
    assert first["caption_ids"].tolist() == [b"10", b"11", b"12"]
    manifest = json.loads((out / "manifest.json").read_text())
    captions = (source / "dataset_flickr30k.json").read_bytes()
    assert manifest["sources"] == {
        "dataset_flickr30k.json": hashlib.sha256(captions).hexdigest()
    }
    assert manifest["splits"]["test"] == {"images": 2, "captions": {"texts": 5}}
    for shard in manifest["shards"]:
        content = (out / shard["name"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert shard["bytes"] == len(content)
    queries = pq.read_table(out / "queries.parquet").to_pylist()
    pictures = [tiny.draw(tiny.NAMES[n], 1) for n in (1, 3, 2)]  # test, then val
    assert queries == [{"image_id": identify(p), "image": p} for p in pictures]


def test_coco_reads_the_pictures_of_its_own_folder(tmp_path):
    source = download(tmp_path / "downloads", TINY_COCO)
    write_set(TINY_COCO, source, tmp_path / "coco")
    read = Retrieval(RetrievalConfig(str(tmp_path / "coco"), "test"))
    assert len(read.pictures) == 2
    assert len(read.texts) == 5


def test_coco_s_training_pictures_lie_in_two_folders(tmp_path):
    counts = {"images": {"train": 1, "restval": 1}}
    counts["texts"] = {"train": {"texts": 2}, "restval": {"texts": 2}}
    facts = dataclasses.replace(COCO_TRAIN, **counts)
    source = tmp_path / "downloads"
    images = []
    for number, split in enumerate(counts["images"]):
        folder = ("train2014", "val2014")[number]
        (source / folder).mkdir(parents=True)
        (source / folder / "0.jpg").write_bytes(tiny.draw(tiny.NAMES[number], 1))
        texts = [{"raw": f"{split} {n}", "sentid": n} for n in range(2)]
        image = {"split": split, "filename": "0.jpg", "filepath": folder}
        images.append(image | {"sentences": texts})
    (source / "dataset_coco.json").write_text(json.dumps({"images": images}))
    write_set(facts, source, tmp_path / "out")
    for number, split in enumerate(counts["images"]):
        read = Retrieval(RetrievalConfig(str(tmp_path / "out"), split))
        assert read.pictures == [tiny.draw(tiny.NAMES[number], 1)]
        assert read.texts == [f"{split} 0", f"{split} 1"]


def test_docci_has_one_description_a_picture_of_its_split(tmp_path):
    facts = dataclasses.replace(DOCCI, images={"test": 2}, texts={"test": {"texts": 2}})
    source = tmp_path / "downloads"
    (source / "docci" / "images").mkdir(parents=True)
    lines = []
    for number, split in enumerate(["train", "test", "qual_dev", "test"]):
        name, text = f"{split}_{number}.jpg", f"Long {number}.\u2028 And longer. "
        line = {"example_id": name[:-4], "split": split, "image_file": name}
        lines.append(json.dumps(line | {"description": text}, ensure_ascii=False))
        if split == "test":
            picture = tiny.draw(tiny.NAMES[number], 1)
            (source / "docci" / "images" / name).write_bytes(picture)
    path = source / "docci" / "docci_descriptions.jsonlines"
    path.write_text("\n".join(lines) + "\n")
    write_set(facts, source, tmp_path / "out")
    read = Retrieval(RetrievalConfig(str(tmp_path / "out"), "test"))
    assert read.pictures == [tiny.draw(tiny.NAMES[n], 1) for n in (1, 3)]
    assert read.texts == [f"Long {n}.\u2028 And longer." for n in (1, 3)]
    with pytest.raises(
        InputError, match=r"of docci has 2 pictures; wanted 5000: docci/"
    ):
        write_set(DOCCI, source, tmp_path / "other")
    without_text = '{"split": "test", "image_file": "1.jpg"}'
    for broken in ("{", "[" * 100_000, '"test"', without_text):
        path.write_text("\n".join([lines[0], broken]))
        with pytest.raises(
            InputError, match=r"line 2 of .* is none of DOCCI's .*github"
        ):
            write_set(facts, source, tmp_path / "other")


def test_urban_1k_has_a_text_file_for_each_picture(tmp_path):
    facts = dataclasses.replace(
        URBAN1K, images={"test": 2}, texts={"test": {"texts": 2}}
    )
    source = tmp_path / "downloads"
    with pytest.raises(
        InputError, match=r"no file .*Urban1k/caption/\*.txt; .*Beichen"
    ):
        write_set(facts, source, tmp_path / "out")
    captions, pictures = (source / "Urban1k" / n for n in ("caption", "image"))
    captions.mkdir(parents=True)
    pictures.mkdir()
    for number in (2, 10):
        (captions / f"{number}.txt").write_text(f"Street {number}.\nMore.\n")
        (pictures / f"{number}.jpg").write_bytes(tiny.draw(tiny.NAMES[number], 1))
    write_set(facts, source, tmp_path / "out")
    read = Retrieval(RetrievalConfig(str(tmp_path / "out"), "test"))
    assert read.pictures == [tiny.draw(tiny.NAMES[n], 1) for n in (10, 2)]
    assert read.texts == ["Street 10.", "Street 2."]
    (hashed,) = json.loads((tmp_path / "out" / "manifest.json").read_text())[
        "sources"
    ].values()
    content = b"Street 10.\nMore.\nStreet 2.\nMore.\n"
    assert hashed == hashlib.sha256(content).hexdigest()
    (captions / "2.txt").write_text("Another.\n")
    with pytest.raises(InputError, match="does not hold urban1k of these files"):
        write_set(facts, source, tmp_path / "out")
    (captions / "3.txt").write_text("Street 3.\n")
    with pytest.raises(InputError, match=r"of urban1k has 3 pictures; wanted 2"):
        write_set(facts, source, tmp_path / "other")


def test_multi30k_pairs_line_i_with_picture_i_in_every_language(source, tmp_path):
    list_file, *captions = (source / name for name in TINY_MULTI30K.captions)
    for path in (list_file, *captions):
        path.parent.mkdir(parents=True, exist_ok=True)
    list_file.write_text("3.jpg\n1.jpg\n")
    for path in captions:
        lines = f"{path.name} of 3\u2028\n{path.name} of 1\n"
        path.write_bytes(gzip.compress(lines.encode()))
    out = tmp_path / "multi30k"
    write_set(TINY_MULTI30K, source, out)
    german = Retrieval(RetrievalConfig(str(out), "test", texts_feature="texts_de"))
    assert german.pictures == [tiny.draw(tiny.NAMES[n], 1) for n in (3, 1)]
    assert german.texts[:5] == [f"test_2016.{n}.de.gz of 3" for n in range(1, 6)]
    assert german.pairs[:, 0].tolist() == [0] * 5 + [1] * 5
    czech = Retrieval(RetrievalConfig(str(out), "test", texts_feature="texts_cs"))
    assert czech.texts == [f"test_2016_flickr.cs.gz of {n}" for n in (3, 1)]

    captions[0].write_bytes(gzip.compress(b"one line\n"))
    with pytest.raises(InputError, match=r"test_2016\.1\.en\.gz has 1 lines; wanted 2"):
        write_set(TINY_MULTI30K, source, tmp_path / "other")
    captions[0].write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"test_2016\.1\.en\.gz is damaged"):
        write_set(TINY_MULTI30K, source, tmp_path / "other")
    captions[-1].unlink()
    with pytest.raises(InputError, match=r"no file .*cs\.gz; .*github\.com/multi30k"):
        write_set(TINY_MULTI30K, source, tmp_path / "other")


WRONG = {
    "pictures": (
        lambda images: images.append({**images[1], "filename": "9.jpg"}),
        "split 'test' of flickr30k has 3 pictures; wanted 2",
    ),
    "captions": (
        lambda images: images[1]["sentences"].pop(),
        "'test' of flickr30k has 4 captions .texts.; wanted 5",
    ),
    "missing": (
        lambda images: images[1].update(filename="../9.jpg"),
        "1 of 3 pictures of flickr30k are not in .*flickr30k-images .9.jpg..*"
        "shannon.cs.illinois.edu",
    ),
    "repeated": (
        lambda images: images[1].update(filename="3.jpg"),
        "'test' of flickr30k lists a picture twice",
    ),
    "another file": (
        lambda images: [image.pop("sentences") for image in images],
        "not one of Karpathy's files .KeyError: 'sentences'.*karpathy/deepimagesent",
    ),
    "a bare picture": (
        lambda images: (
            images[1]["sentences"].extend(images[3].pop("sentences"))
            or images[3].update(sentences=[])
        ),
        "1 pictures without captions .texts., the first is 3.jpg",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_source_is_refused_and_nothing_written(source, tmp_path, name):
    change, message = WRONG[name]
    edit(source, change)
    with pytest.raises(InputError, match=message):
        write_set(TINY_FLICKR, source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


def test_an_undecodable_picture_leaves_nothing_behind(source, tmp_path):
    (source / "flickr30k-images" / "3.jpg").write_bytes(b"<html>404</html>")
    with pytest.raises(InputError, match=r"3\.jpg cannot be decoded"):
        write_set(TINY_FLICKR, source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


def test_a_missing_source_says_where_it_is_from(tmp_path):
    with pytest.raises(InputError, match=r"no file .*cocodataset\.org"):
        write_set(COCO, tmp_path, tmp_path / "out")


def test_a_finished_folder_stays_and_a_foreign_one_is_refused(source, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is accepted
    write_set(TINY_FLICKR, source, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    write_set(TINY_FLICKR, source, out)
    assert "complete: nothing to do" in capsys.readouterr().out
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    edit(source, lambda images: images[0].update(filename="other.jpg"))
    with pytest.raises(InputError, match="does not hold flickr30k of these files"):
        write_set(TINY_FLICKR, source, out)
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="does not hold flickr30k"):
        write_set(TINY_FLICKR, source, foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_an_unknown_name_lists_the_known_ones(monkeypatch, tmp_path, capsys):
    arguments = ["eval_sets", "flikr30k", "--source", "x", "--out", "y"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert run_command("data.eval_sets", eval_sets.main) == 2
    error = capsys.readouterr().err
    assert error == (
        "data.eval_sets: NAME is 'flikr30k'; did you mean 'flickr30k'? known:"
        " flickr30k, coco, multi30k, flickr30k_train, coco_train, docci, urban1k\n"
    )


def test_the_command_ends_in_one_line_without_tensorflow(tmp_path):
    command = [sys.executable, "-m", "data.eval_sets", "coco"]
    folders = ["--source", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command + folders, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("data.eval_sets: no file")
    assert done.stderr.count("\n") == 1
