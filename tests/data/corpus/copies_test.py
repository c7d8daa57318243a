"""Near-copies within a corpus, beside a comparison of every two pictures."""

import io
import json
import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.corpus.build_files import format_report
from data.corpus.builder import Build, build
from data.corpus.config import CopiesConfig, CorpusConfig, EngineConfig
from data.corpus.copies import choose_masks, describe_copies, keep_originals
from data.corpus.ingest import identify
from data.corpus.rules import RuleBounds
from data.sources.config import SourceConfig
from tests.data.corpus.corpus_test import draw, resized, sentence
from tests.data.spark import SPARK

CHOICES = random.Random(0)


def signed(bits: int) -> int:
    return bits - 2**64 * (bits >> 63)


def flipped(bits: int, count: int) -> int:
    return bits ^ sum(1 << place for place in CHOICES.sample(range(64), count))


@pytest.mark.parametrize("hashes", [1000, 10**6, 10**9])
@pytest.mark.parametrize("distance", [1, 2, 4, 8])
def test_near_hashes_share_a_block_of_bits_and_joins_are_few(distance, hashes):
    masks = choose_masks(distance, hashes)
    assert len({*masks}) == len(masks) <= 500
    for _ in range(300):
        one = CHOICES.getrandbits(64)
        other = flipped(one, CHOICES.randint(1, distance))
        assert any(not (one ^ other) & mask for mask in masks)
    bits = min((mask % 2**64).bit_count() for mask in masks)
    candidates = len(masks) * hashes * hashes / 2**bits
    # Neither more joins than with the shortest keys, nor far more rows than hashes.
    assert candidates < 500 * hashes * max(1, hashes / 2**20)
    assert all(-(2**63) <= mask < 2**63 for mask in masks)


def test_no_join_is_needed_for_equal_hashes():
    assert choose_masks(0, 1000) == []


def make_pictures() -> list[dict]:
    """Makes groups of near hashes with chains, equal sizes, and unknown hashes."""
    rows = []
    for group in range(60):
        bits = CHOICES.getrandbits(64)
        for _ in range(CHOICES.randint(1, 12)):
            width = CHOICES.choice([300, 300, 400, 70_000])
            row = {
                "phash": signed(bits),
                "width": width,
                "height": width // (group + 1) + 9,
            }
            rows.append(row | {"image_id": f"{CHOICES.getrandbits(64):016x}"})
            bits = flipped(bits, CHOICES.choice([0, 0, 1, 2, 3, 5, 9]))
    return rows


def oracle(rows: list[dict], distance: int) -> dict[str, str]:
    """Returns each dropped picture and the best one near it."""

    def goodness(row):
        return (-row["width"] * row["height"], row["image_id"])

    known = [row for row in rows if row["phash"] is not None]
    found = {}
    for row in known:
        near = [
            other
            for other in known
            if ((row["phash"] ^ other["phash"]) % 2**64).bit_count() <= distance
        ]
        best = min(near, key=goodness)
        if best is not row:
            found[row["image_id"]] = best["image_id"]
    return found


PICTURES = [
    {"phash": signed(1 << 63), "width": 5, "height": 5, "image_id": "a"},
    {"phash": 0, "width": 5, "height": 5, "image_id": "b"},
    {"phash": None, "width": 0, "height": 0, "image_id": "c"},
    {"phash": None, "width": None, "height": None, "image_id": "d"},
    {"phash": 0, "width": 100_000, "height": 100_000, "image_id": "left out"},
]


def find(folder, distance: int, engine: EngineConfig) -> tuple[list, dict, Build]:
    """Runs the step on pictures that are already on disk."""
    rows = [*PICTURES, *make_pictures()]
    stages = folder / "stages"
    stages.mkdir(parents=True)
    types = {"phash": pa.int64(), "width": pa.int32(), "height": pa.int32()}
    schema = pa.schema([*types.items(), ("image_id", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema), stages / "pictures.parquet")
    left = [row for row in rows if row["image_id"] != "left out"]
    pairs = [
        {"image_id": row["image_id"], "text": f"text {n}", "key": n}
        for row in left
        for n in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(pairs), stages / "distinct.parquet")
    config = CorpusConfig(
        name="toy",
        seed=5,
        ingest=SourceConfig("parquet", "none"),
        rules=RuleBounds(),
        vocabulary_size=100,
        copies=CopiesConfig(distance),
        engine=engine,
    )
    made = Build(config, folder)
    kept = made.engine.execute(keep_originals(made, made.table("distinct")))
    rows_found = made.engine.execute(made.table("copies"))
    copies = dict(zip(rows_found["image_id"], rows_found["better"], strict=True))
    assert len(copies) == len(rows_found)
    dropped = {row["image_id"] for row in left} - {*kept["image_id"]}
    assert dropped == copies.keys()
    assert len(kept) == 2 * (len(left) - len(copies))
    return left, copies, made


@pytest.mark.parametrize("distance", [0, 1, 4, 8])
def test_the_copies_are_those_of_a_comparison_of_all(tmp_path, distance):
    left, copies, made = find(tmp_path, distance, EngineConfig(workers=1))
    assert copies == oracle(left, distance)
    assert 50 < len(copies) < len(left) - 50
    assert describe_copies(made)["copies"] == len(copies)
    made.close()


@pytest.mark.spark
@pytest.mark.parametrize("distance", [0, 2])
def test_spark_finds_the_same_copies(tmp_path, distance):
    left, copies, _ = find(tmp_path, distance, SPARK)
    assert copies == oracle(left, distance)


def test_a_corpus_keeps_the_larger_of_two_copies(tmp_path):
    pictures = [draw(n) for n in range(6)]
    copies = [resized(draw(0)), resized(draw(1))]  # 230 x 230 in place of 201 x 201
    with Image.open(io.BytesIO(draw(2))) as picture:
        file = io.BytesIO()
        picture.resize((250, 260)).save(file, "PNG")
    copies.append(file.getvalue())
    rows = [
        {"image": picture, "alt_text": sentence(4, n), "language": "en"}
        for n, picture in enumerate([*pictures, *copies])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw.parquet")
    config = CorpusConfig(
        name="copied",
        seed=0,
        ingest=SourceConfig("parquet", str(tmp_path / "raw.parquet")),
        rules=RuleBounds(),
        vocabulary_size=100,
        copies=CopiesConfig(4),
        engine=EngineConfig(workers=1),
        shards=1,
    )
    build(config, tmp_path / "corpus")
    kept = pq.read_table(tmp_path / "corpus" / "stages" / "kept.parquet")
    assert {*kept["image_id"].to_pylist()} == {
        identify(picture) for picture in [*pictures[3:], *copies]
    }
    report = json.loads((tmp_path / "corpus" / "report.json").read_text())
    assert report["rules"][-1] == {"rule": "near_copy", "breaks": 3, "first": 3}
    assert report["copies"] == {"pictures": 9, "copies": 3}
    assert "copies: 3 of 9 pictures have a better one" in format_report(report)
    page = (tmp_path / "corpus" / "report.html").read_text()
    assert "Copies within the corpus" in page
    assert page.count(">better<") == 3


def test_the_number_of_joins_is_stated():
    """docs/corpus.md states it for 4 bits."""
    assert [len(choose_masks(4, 10**n)) for n in (6, 9)] == [15, 70]
    assert math.comb(8, 4) == 70
