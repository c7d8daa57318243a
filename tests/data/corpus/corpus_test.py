"""A corpus in which every rule is broken at its bound, built by each engine."""

import dataclasses
import io
import itertools
import json
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align_jax.errors import InputError
from data.corpus.builder import Build, build
from data.corpus.config import CorpusConfig, EngineConfig, PictureConfig
from data.corpus.ingest import identify, normalise
from data.corpus.rules import RuleBounds
from data.pictures.images import hash_greys, shrink
from data.sources.config import SourceConfig
from tests.data.corpus.corpus_oracle import decide
from tests.data.spark import SPARK

WORDS = [f"word{n}" for n in range(48)]


def draw(number: int, size: tuple[int, int] = (201, 201)) -> bytes:
    """Draws a picture that depends on `number` and differs from all others."""
    pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def resized(picture: bytes) -> bytes:
    """Makes a near-duplicate of a picture."""
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).resize((230, 230)).save(file, "JPEG", quality=80)
    return file.getvalue()


def sentence(count: int, start: int = 0) -> str:
    """Returns `count` words that are frequent, as are their bigrams."""
    return " ".join(WORDS[(start + n) % len(WORDS)] for n in range(count))


def planted() -> list[dict]:
    """Returns raw rows on both sides of every bound, and the paper's examples."""
    number = itertools.count()
    rows = []

    def add(text, picture=None, **more):
        picture = draw(next(number)) if picture is None else picture
        rows.append({"image": picture, "alt_text": text, "language": "en", **more})

    for start in range(48):  # makes the sentences' words and bigrams frequent
        for count in (3, 5, 9, 18, 20):
            add(sentence(count, start))
    for count in (0, 1, 2, 3, 20, 21):
        add(sentence(count, 7))
    for size in ((200, 300), (201, 300), (300, 900), (300, 899), (900, 300)):
        add(sentence(4, size[1] % 24), draw(next(number), size))
    for shared, start in ((10, 1), (11, 2)):
        for _ in range(shared):
            add(sentence(6, start))
    for texts in (1000, 1001):
        crowded = draw(next(number))
        for n in range(texts):
            add(f"{sentence(3, n % 24)} {sentence(3, n // 24)} {texts}", crowded)
    for text in (
        "1920x1080",
        "alt_img",
        "image_tid 25&id mggqpuwe-qdpd&cache 0&lan_code 0",
        "cristina",
    ):
        add(text)
    add("  WORD3   Word4\tword5 ")  # frequent once normalised
    add(sentence(5, 3), language="de")
    add(sentence(5, 4), language=None)
    add(sentence(5, 5), draw(1)[:100])
    add(sentence(5, 6), draw(10_000))  # an evaluation image
    add(sentence(5, 8), resized(draw(10_001)))  # a near-duplicate of one
    rows.append(rows[0])
    return rows


BOUNDS = RuleBounds(frequent_ngrams=120)
HASH_DISTANCE = 4


def oracle(rows: list[dict]) -> dict[tuple[str, str, str], set[str]]:
    """Finds the rules that each distinct pair breaks, in plain Python."""
    pairs, pictures = set(), {}
    for row in rows:
        name, text = identify(row["image"]), normalise(row["alt_text"], 1000)
        pairs.add((name, text, row["language"] or ""))
        pictures[name] = row["image"]
    sizes, hashes = {}, {}
    for name, picture in pictures.items():
        try:
            with Image.open(io.BytesIO(picture)) as image:
                image.load()
                sizes[name] = image.size
                (hashes[name],) = hash_greys([shrink(image)]).tolist()
        except OSError:
            sizes[name] = None
    measured = {
        n: (*size, None) if size else (0, 0, "bad") for n, size in sizes.items()
    }
    held_out = [draw(10_000), draw(10_001)]
    decided = decide(pairs, measured, BOUNDS, {identify(held_out[0])})
    greys = [shrink(Image.open(io.BytesIO(p))) for p in held_out]
    known = hash_greys(greys).tolist()
    for (name, _, _), broken in decided.items():
        near = sizes[name] and any(
            (hashes[name] ^ h).bit_count() <= HASH_DISTANCE for h in known
        )
        if near and not broken:  # picture rules see only survivors
            broken.add("near_duplicate")
    return decided


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The planted rows as a source of three shards, and the config of their corpus."""
    folder = tmp_path_factory.mktemp("raw")
    rows = planted()
    for n in range(3):
        part = pa.Table.from_pylist(rows[n::3])
        pq.write_table(part, folder / f"{n}.parquet")
    held_out = [draw(10_000), draw(10_001)]
    table = {"image_id": [identify(held_out[0]), "elsewhere"], "image": held_out}
    pq.write_table(pa.table(table), folder / "held_out")
    config = CorpusConfig(
        name="planted",
        seed=3,
        ingest=SourceConfig("parquet", str(folder / "*.parquet")),
        rules=BOUNDS,
        vocabulary_size=500,
        evaluation_images=str(folder / "held_out"),
        pictures=PictureConfig(max_hash_distance=HASH_DISTANCE),
        shards=4,
    )
    return rows, config


def assert_equals_oracle(rows, folder):
    expected = oracle(rows)
    flags = pq.read_table(folder / "stages" / "flags.parquet").to_pylist()
    report = json.loads((folder / "report.json").read_text())
    names = [rule["rule"] for rule in report["rules"]]
    scores = pq.read_table(folder / "stages" / "scores").to_pylist()
    scores = {row["image_id"]: row for row in scores}
    found = {
        (row["image_id"], row["text"], row["language"]): {
            n for n in names if (row | scores.get(row["image_id"], {})).get(n)
        }
        for row in flags
    }
    assert found == expected
    for rule in report["rules"]:
        name = rule["rule"]
        earlier = set(names[: names.index(name)])
        breaking = [b for b in expected.values() if name in b]
        assert rule["breaks"] == len(breaking), name
        assert rule["first"] == sum(not b & earlier for b in breaking), name
    kept = {key[:2] for key, broken in expected.items() if not broken}
    rows = pq.read_table(folder / "stages" / "kept.parquet").to_pylist()
    assert {(row["image_id"], row["text"]) for row in rows} == kept
    assert report["pairs_kept"] == len(kept) > 100


def records_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "records").iterdir()}


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory):
    """The folder of the corpus, built by one process."""
    folder = tmp_path_factory.mktemp("built") / "corpus"
    build(dataclasses.replace(raw[1], engine=EngineConfig(workers=1)), folder)
    return folder


def test_every_rule_at_every_bound_equals_plain_python(raw, built):
    assert_equals_oracle(raw[0], built)
    report = json.loads((built / "report.json").read_text())
    untouched = {"no_image", "pornographic", "near_embedding"}
    for rule in report["rules"]:
        assert bool(rule["breaks"]) != (rule["rule"] in untouched), rule
    off = {row["rule"]: row["reason"] for row in report["off"]}
    assert [*off] == ["pornographic", "near_embedding"]
    assert off["near_embedding"] == "config.pictures.embedding_model is empty"
    assert (built / "report.html").stat().st_size < 3e6


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.pods)])
def test_any_number_of_workers_writes_the_same_bytes(raw, built, tmp_path, workers):
    config = dataclasses.replace(raw[1], engine=EngineConfig(workers=workers))
    build(config, tmp_path / "corpus")
    assert records_of(tmp_path / "corpus") == records_of(built)


@pytest.mark.spark
def test_spark_writes_the_same_bytes(raw, built, tmp_path):
    build(dataclasses.replace(raw[1], engine=SPARK), tmp_path / "corpus")
    assert_equals_oracle(raw[0], tmp_path / "corpus")
    assert records_of(tmp_path / "corpus") == records_of(built)


def killed(*args):
    raise KeyboardInterrupt


def test_a_build_of_a_relative_path_goes_on(raw, tmp_path, monkeypatch):
    rows, config = raw
    source = SourceConfig("parquet", "raw/*.parquet")
    config = dataclasses.replace(config, ingest=source, engine=EngineConfig(workers=1))
    (tmp_path / "raw").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "raw" / "one.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Build, "distinct", killed)
    with pytest.raises(KeyboardInterrupt):
        build(config, tmp_path / "corpus")
    listed = tmp_path / "corpus" / "stages" / "shards.json"
    (shard,) = json.loads(listed.read_text())
    assert shard["path"] == str(tmp_path / "raw" / "one.parquet")
    # A folder may list the path as the user typed it.
    listed.write_text(json.dumps([{**shard, "path": "raw/one.parquet"}]))
    with pytest.raises(KeyboardInterrupt):
        build(config, tmp_path / "corpus")


def test_a_source_that_changed_is_refused(raw, tmp_path, monkeypatch):
    rows, config = raw
    source = SourceConfig("parquet", str(tmp_path / "*.parquet"))
    config = dataclasses.replace(config, ingest=source, engine=EngineConfig(workers=1))
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "one.parquet")
    monkeypatch.setattr(Build, "distinct", killed)
    with pytest.raises(KeyboardInterrupt):
        build(config, tmp_path / "corpus")
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "two.parquet")
    with pytest.raises(InputError, match=r"parquet has changed since .* was begun"):
        build(config, tmp_path / "corpus")


SLOW_BUILD = """
import pathlib, pickle, sys, time
from data.corpus import builder

ingest_shard = builder.ingest_shard

def slow(index, **arguments):
    if index == 1:
        time.sleep(600)
    return ingest_shard(index=index, **arguments)

builder.ingest_shard = slow
builder.build(*pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()))
"""


def test_a_build_killed_between_two_shards_keeps_the_first(raw, built, tmp_path):
    config = dataclasses.replace(raw[1], engine=EngineConfig(workers=1))
    folder = tmp_path / "corpus"
    (tmp_path / "arguments").write_bytes(pickle.dumps((config, folder)))
    command = [sys.executable, "-c", SLOW_BUILD, str(tmp_path / "arguments")]
    root = pathlib.Path(__file__).parents[3]
    first = folder / "stages" / "pairs" / "00000.parquet"
    with subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL) as process:
        while not first.exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    written = first.stat().st_mtime_ns
    assert not (folder / "stages" / "pairs" / "00001.parquet").exists()
    build(config, folder)
    assert first.stat().st_mtime_ns == written
    assert records_of(folder) == records_of(built)


def test_large_pictures_are_reduced_where_asked(raw, built, tmp_path):
    import tensorflow_datasets as tfds

    config = dataclasses.replace(
        raw[1], max_image_side=150, engine=EngineConfig(workers=1)
    )
    build(config, tmp_path / "corpus")
    builder = tfds.builder_from_directory(str(tmp_path / "corpus" / "records"))
    shapes = {row["image"].shape for row in builder.as_dataset(split="train")}
    assert max(max(shape) for shape in shapes) == 150
