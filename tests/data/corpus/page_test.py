import io
import json
import re

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.corpus import page, plots

HOSTILE = "<script>alert('x')</script>\"><img src=//x onerror=y>\0\x1b ‮txet"
RULES = ("undecodable", "too_short", "pornographic")


def png(colour: str, mode: str = "RGBA", side: int = 300) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, 2 * side), colour).save(file, "PNG")
    return file.getvalue()


FILES = {"good": png("red"), "grey": png("grey", "L"), "broken": b"\x89PNG no"}
FILES["nude"] = png("pink", "RGB", 31)


def report(**more) -> dict:
    rules = [
        {"rule": "undecodable", "breaks": 1, "first": 1},
        {"rule": "too_short", "breaks": 2, "first": 1},
        {"rule": "pornographic", "breaks": 1, "first": 1},
    ]
    return {"pairs_in": 5, "pairs_kept": 2, "rules": rules} | more


def tables(kept: int = 2) -> dict[str, pa.Table]:
    flags = [
        ("good", "a red thing", 3, (False, False, False)),
        ("grey", HOSTILE, 1, (False, None, False)),
        ("broken", "cut", 2, (True, True, None)),
        ("missing", "", 5, (False, True, None)),
        ("nude", "the nude", 4, (False, False, True)),
    ]
    rows = [
        {"image_id": i, "text": t.replace("\0", " "), "key": k}
        | {"language": "en"}
        | dict(zip(RULES, broken, strict=True))
        for i, t, k, broken in flags
    ]
    pictures = {
        "image_id": ["good", "grey", "broken", "nude"],
        "width": pa.array([300, 300, 0, 31], pa.int32()),
        "height": pa.array([600, 600, 0, 62], pa.int32()),
        "format": ["PNG", "PNG", None, "PNG"],
        "error": [None, None, "OSError: <b>cut</b>", None],
    }
    schema = pa.schema(
        [("image_id", pa.string()), ("text", pa.string()), ("key", pa.int64())]
    )
    return {
        "flags": pa.Table.from_pylist(rows),
        "pictures": pa.table(pictures),
        "ngrams": pa.table({"ngram": ["a", "b", "c"], "count": [1, 1, 700]}),
        "kept": pa.Table.from_pylist(rows[:kept], schema)
        if kept
        else schema.empty_table(),
    }


@pytest.fixture(scope="module")
def engine():
    return ibis.duckdb.connect()


def stage(folder, engine, name: str, table: pa.Table) -> ibis.Table:
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / f"{name}.parquet")
    return engine.read_parquet(folder / f"{name}.parquet")


def write(tmp_path, engine, contents=None, **more) -> str:
    made = {
        name: stage(tmp_path / "stages", engine, name, table)
        for name, table in (contents or tables()).items()
    }
    path = tmp_path / "out" / "report.html"
    path.parent.mkdir(exist_ok=True)

    def read_pictures(names: list[str]) -> dict[str, bytes]:
        assert "nude" not in names
        return {name: FILES[name] for name in names if name in FILES}

    page.write_page(report(**more), made, read_pictures, path, engine.execute)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_hostile_texts_are_escaped_and_nothing_is_loaded(tmp_path, engine):
    off = [{"rule": "near<b>", "reason": HOSTILE.replace("\0", "")}]
    config = {"name": HOSTILE.replace("\0", ""), "rules": {"min_unigrams": 3}}
    page = write(tmp_path, engine, off=off, config=config, drops={"<b>": 1})
    assert "&lt;script&gt;" in page
    assert "\0" not in page
    assert not re.search(r"<script|<b>|<img src=[^\"]|onerror=y>", page)
    assert "default-src 'none'" in page
    sources = re.findall(r'(?:src|href)="([^"]*)', page)
    assert sources
    assert all(s.startswith(("data:image/jpeg", "#")) for s in sources)


def test_every_rule_shows_the_pairs_it_dropped_first(tmp_path, engine):
    page = write(tmp_path, engine)
    kept, dropped = page.split('id="dropped"')
    parts = dict(zip(RULES, re.split("<h3>", dropped)[1:], strict=True))
    assert "cut" in parts["undecodable"]
    assert "&lt;b&gt;" in parts["undecodable"]
    assert "(empty text)" in parts["too_short"]
    assert ">cut<" not in parts["too_short"]
    assert "no picture" in parts["too_short"]
    assert "the nude" in parts["pornographic"]
    assert "withheld" in parts["pornographic"]
    assert "<img" not in dropped
    # Pairs are sorted by key: the hostile text comes before the red thing.
    assert kept.count("<img src=") == 2
    assert kept.index("&lt;script") < kept.index("<bdi>a red thing")


def test_a_rule_without_rows_and_an_empty_corpus_have_a_page(tmp_path, engine):
    rules = [{"rule": name, "breaks": 0, "first": 0} for name in RULES]
    contents = {name: table.slice(0, 0) for name, table in tables(kept=0).items()}
    page = write(tmp_path, engine, contents, rules=rules, pairs_in=0, pairs_kept=0)
    assert page.count("It dropped no pair first.") == 3
    assert page.count("<svg") == 4


def test_a_rule_that_was_off_is_loud(tmp_path, engine):
    assert 'role="alert"' not in write(tmp_path, engine)
    page = write(tmp_path, engine, off=[{"rule": "pornographic", "reason": "no model"}])
    assert 'role="alert">Rule pornographic was OFF: no model.' in page
    assert "This rule was off." in page


def test_the_page_is_the_same_every_time(tmp_path, engine):
    config = {"seed": 1, "rules": {"min_shorter_side": 200, "languages": ["en"]}}
    page = write(tmp_path, engine, config=config, ngram_cut=2)
    assert page == write(tmp_path, engine, config=config, ngram_cut=2)
    assert json.dumps(config["rules"]["languages"][0])[1:-1] in page


def test_histograms_count_every_row_once(tmp_path, engine):
    made = stage(tmp_path, engine, "flags", tables()["flags"])
    values, counts = plots.count_values(made, plots._length(made), engine.execute)
    words = [3, 5, 1, 0, 2]
    words[1] = len(HOSTILE.replace("\0", " ").split(" "))
    assert dict(zip(values, counts, strict=True)) == {w: 1 for w in words}
    shown = stage(tmp_path, engine, "pictures", tables()["pictures"])
    shown = shown.filter(shown.width > 0)
    values, counts = plots.count_values(shown, plots._aspect(shown), engine.execute)
    assert values.tolist() == [20]
    assert counts.tolist() == [3]


def test_thumbnails_are_small_and_new_and_only_of_pictures():
    noise = np.random.default_rng(0).integers(0, 255, (900, 700, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    uri = page.thumbnail(file.getvalue())
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 20_000
    for bad in (b"", b"<svg/>", FILES["broken"], FILES["good"][:60]):
        assert page.thumbnail(bad) is None


def test_a_share_is_never_rounded_to_none_or_all():
    assert page.share(0, 9) == "0.0 %"
    assert page.share(0, 0) == "0.0 %"
    assert page.share(1, 10_000_000) == "< 0.1 %"
    assert page.share(9_999_999, 10_000_000) == "> 99.9 %"
    assert page.share(1, 3) == "33.3 %"
