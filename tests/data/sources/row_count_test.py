"""Rows in = pairs + drops, for every type of source, on generated input."""

import collections
import csv
import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from data.sources.config import SourceConfig
from data.sources.files import RawPair
from data.sources.source import SOURCES, list_shards, read_shard
from tests.data.sources.reading import PNG, read, write_tar

TEXTS = ["a red house", '"', '" begins', 'a "middle" one', "ends\\", "", "a,b", "é ß"]
BAD = [b"caf\xe9", b"a\0b"]
SEEDS = range(20)


def check(kind, path, rows, **fields):
    pairs, drops = read(kind, path, **fields)
    assert len(pairs) + sum(drops.values()) == rows, drops
    return pairs, drops


@pytest.mark.parametrize("seed", SEEDS)
def test_tsv_lines(tmp_path, seed):
    random_ = random.Random(seed)
    lines, good = [], []
    for n in range(random_.randrange(60)):
        text = random_.choice(TEXTS)
        fields = random_.choice([2, 2, 2, 1, 3])
        lines.append("\t".join([f"http://u/{n}", text, "more"][:fields]))
        good += [text] if fields == 2 else []
        lines += [""] * (random_.random() < 0.1)
    content = "".join(line + random_.choice(["\n", "\r\n"]) for line in lines)
    path = tmp_path / "a.tsv"
    path.write_bytes(("url\talt_text\n" + content).encode())
    pairs, _ = check("tsv", path, sum(bool(line) for line in lines))
    assert [row[2] for row in pairs] == good
    path.write_bytes(content.encode())
    header = ("url", "alt_text")
    if content:
        assert check("tsv", path, sum(map(bool, lines)), header=header)[0] == pairs


@pytest.mark.parametrize("seed", SEEDS)
def test_csv_rows_of_a_good_writer_and_lines_that_are_broken(
    tmp_path, monkeypatch, seed
):
    monkeypatch.setattr("data.sources.csv_tables.SHARD_ROWS", 7)
    random_ = random.Random(seed)
    file, good, broken = io.StringIO(), [], 0
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["url", "alt_text"])
    for n in range(60):
        if random_.random() < 0.2:
            bad = random_.choice(['u,"never closed', 'u,"closed" early', "alone"])
            file.write(bad + "\n")
            broken += 1
        else:
            good.append(random_.choice([*TEXTS, "two\nlines", '"two"\n"lines"']))
            writer.writerow([f"http://u/{n}", good[-1]])
            # Here a mark that was never closed ends at a mark of this row.
    path = tmp_path / "a.csv"
    path.write_text(file.getvalue())
    pairs, drops = read("csv", path)
    assert len(pairs) + sum(drops.values()) >= 60
    if not broken:
        assert [row[2] for row in pairs] == good
    alone = [text for text in good if "\n" not in text and '"' not in text]
    kept = collections.Counter(row[2] for row in pairs)
    assert all(kept[t] >= n for t, n in collections.Counter(alone).items())


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_one_mark_costs_one_row_at_most(tmp_path, kind):
    split = {"csv": ",", "tsv": "\t"}[kind]
    lines = [f"http://a/{i}.jpg{split}caption {i}" for i in range(1000)]
    lines[100] = f'http://a/100.jpg{split}"never closed'
    path = tmp_path / f"a.{kind}"
    path.write_text("\n".join([f"url{split}alt_text", *lines]) + "\n")
    pairs, drops = check(kind, path, 1000)
    assert drops == ({} if kind == "tsv" else {"bad csv row": 1})
    assert len({row[2] for row in pairs}) == len(pairs)


@pytest.mark.parametrize("seed", SEEDS)
def test_json_lines(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("data.sources.json_lines.SHARD_BYTES", 100)
    random_ = random.Random(seed)
    lines, rows, texts = [], 0, []
    (tmp_path / "a.png").write_bytes(PNG)
    for _ in range(40):
        kind = random_.randrange(7)
        text = random_.choice(TEXTS)
        good = {"url": "http://u", "alt_text": text}
        lines.append(
            [
                json.dumps(good, ensure_ascii=False).encode(),
                json.dumps({"image": "a.png", "alt_text": [text, "b"]}).encode(),
                json.dumps({"image": "none.png", "alt_text": text}).encode(),
                b"[1]",
                b'{"alt_text": "caf\xe9"}',
                b'{"url": "u", "alt_text": "\\ud83d"}',
                b'{"url": 3, "alt_text": []}',
            ][kind]
        )
        rows += 2 if kind == 1 else 1
        texts += {0: [text], 1: [text, "b"]}.get(kind, [])
    content = b"\n".join(lines) + random_.choice([b"", b"\n\n"])
    (tmp_path / "a.jsonl").write_bytes(content)
    pairs, _ = check("jsonl", tmp_path, rows)
    assert [row[2] for row in pairs] == texts
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    assert check("jsonl", tmp_path, rows)[0] == pairs


@pytest.mark.parametrize("seed", SEEDS)
def test_parquet_rows(tmp_path, seed):
    random_ = random.Random(seed)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (tmp_path / "a.png").write_bytes(PNG)
    forms = [{"bytes": PNG, "path": "x"}, {"bytes": None, "path": "a.png"}]
    forms += [{"bytes": None, "path": "../a.png"}, {"bytes": None, "path": None}, None]
    images = [random_.choice(forms) for _ in range(30)]
    captions = [random_.choices(TEXTS, k=random_.randrange(3)) for _ in images]
    categories = pa.ListArray.from_arrays(
        pa.array([0, *_sums(map(len, captions))], pa.int32()),
        pa.array(
            [text for texts in captions for text in texts], pa.string()
        ).dictionary_encode(),
    )
    table = pa.table({"image": pa.array(images, struct), "alt_text": categories})
    pq.write_table(table, tmp_path / "a.parquet")
    pairs, _ = check("parquet", tmp_path, sum(max(1, len(texts)) for texts in captions))
    good = [
        t for i, ts in zip(images, captions, strict=True) if i in forms[:2] for t in ts
    ]
    assert [(row[0], row[2]) for row in pairs] == [(PNG, text) for text in good]


def _sums(numbers):
    total = 0
    for number in numbers:
        total += number
        yield total


@pytest.mark.parametrize("seed", SEEDS)
def test_samples_of_a_tar(tmp_path, seed):
    random_ = random.Random(seed)
    members, rows, texts = [], 0, []
    for n in range(random_.randrange(30)):
        kind = random_.randrange(7)
        text = random_.choice(TEXTS)
        sample = {
            0: [("jpg", PNG), ("txt", text.encode())],
            1: [("PNG", PNG), ("json", json.dumps({"caption": [text, "b"]}).encode())],
            2: [("input.avif", PNG), ("output.txt", text.encode())],
            3: [("jpg", PNG)],
            4: [("txt", text.encode()), ("cls", b"1")],
            5: [("1.jpg", PNG), ("1.txt", b"x"), ("2.jpg", PNG), ("2.txt", b"y")],
            6: [("jpg", PNG), ("mask.png", b"?"), ("txt", text.encode())],
        }[kind]
        for suffix, content in sample:
            members += [(f"d/._{n}.{suffix}", b"mac")] * (random_.random() < 0.3)
            members.append((f"d/{n}.{suffix}", content))
        rows += {1: 2, 5: 2}.get(kind, 1)
        texts += {1: [text, "b"], 3: [], 4: [], 5: ["x", "y"]}.get(kind, [text])
    write_tar(tmp_path / "a.tar", members)
    pairs, _ = check("webdataset", tmp_path, rows)
    assert [row[2] for row in pairs] == texts
    assert {row[0] for row in pairs} <= {PNG}


@pytest.mark.parametrize("seed", SEEDS)
def test_images_of_pages(tmp_path, seed):
    random_ = random.Random(seed)
    tags = ["<img src=http://u alt=a>", "<img src='' alt=b>", "<img alt=c>", "<img>"]
    tags += ["<img src=none.png alt=d>", "<img src=data:,x alt=e>", "<p>", "<base>"]
    rows, good = 0, 0
    for name in ("a.html", "b.html"):
        page = random_.choices(tags, k=20)
        rows += sum(tag.startswith("<img") for tag in page)
        good += page.count(tags[0])
        (tmp_path / name).write_text("".join(page))
    pairs, _ = check("html", tmp_path, rows)
    assert len(pairs) == good


@pytest.mark.parametrize("packing", ["webdataset", "parquet", "files"])
def test_rows_of_img2dataset_that_have_no_picture_are_counted(tmp_path, packing):
    keys = range(6) if packing == "files" else [f"{n:03}" for n in range(6)]
    statuses = ["success"] * 4 + ["failed_to_download", "failed_to_resize"]
    columns = {"key": [*keys], "status": statuses, "caption": TEXTS[:6]}
    if packing == "parquet":
        columns["jpg"] = [PNG, PNG, None, None, None, None]
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    if packing == "webdataset":
        parts = [
            ("000.jpg", PNG),
            ("000.txt", b"a"),
            ("001.jpg", PNG),
            ("001.txt", b"b"),
        ]
        write_tar(tmp_path / "00000.tar", parts)
    elif packing == "files":
        (tmp_path / "00000").mkdir()
        for name in ("000.JPG", "001.avif"):
            (tmp_path / "00000" / name).write_bytes(PNG)
    pairs, drops = check("img2dataset", tmp_path, 6)
    assert len(pairs) == 2
    assert drops["image file missing"] == 2


@pytest.mark.parametrize("loses", [True, False])
def test_a_source_that_miscounts_ends_the_build(monkeypatch, tmp_path, loses):
    class Miscounting(SOURCES["csv"]):
        def read(self, shard, drops):
            yield RawPair(None, "u", "text", "")
            if loses:
                yield None
            else:
                drops["counted, but no row"] += 1

    monkeypatch.setitem(SOURCES, "csv", Miscounting)
    (tmp_path / "a.csv").write_text("url,alt_text\nu,text\n")
    config = SourceConfig("csv", str(tmp_path))
    (shard,) = list_shards(config)
    with pytest.raises(InputError, match=r"'csv' miscounts a\.csv: [01] rows gave no"):
        list(read_shard(config, shard, collections.Counter()))
