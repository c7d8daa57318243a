import collections
import gzip
import io
import json
import tarfile
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align_jax.errors import InputError
from data.sources import tables
from data.sources.html_pages import decode_page, image_tags, read_page
from data.sources.source import RAW, SourceConfig, list_shards, read_shard

PNG = b"\x89PNG picture"


def read(kind, path, **fields):
    config = SourceConfig(kind, str(path), **fields)
    drops, rows = collections.Counter(), []
    for shard in list_shards(config):
        for batch in read_shard(config, shard, drops):
            assert batch.schema == RAW and 0 < len(batch) <= 256
            rows += [tuple(row.values()) for row in batch.to_pylist()]
    return rows, dict(+drops)


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_parquet_of_bytes_keeps_rows_and_empty_texts(tmp_path):
    table = {
        "image": [PNG, None, None, PNG],
        "url": ["http://a/1", "http://a/2", None, None],
        "alt_text": ["one", "", "three", None],
        "language": ["en", None, "de", "fr"],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    rows, drops = read("parquet", tmp_path, language="xx")
    assert rows == [
        (PNG, "http://a/1", "one", "en"),
        (None, "http://a/2", "", "xx"),
        (PNG, None, "", "fr"),
    ]
    assert drops == {"no image and no url": 1}


def test_parquet_of_lists_and_of_embedded_images(tmp_path):
    table = {"picture": [{"bytes": PNG, "path": "x"}], "captions": [["a", "b"]]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    rows, _ = read("parquet", tmp_path, image_column="picture", text_column="captions")
    assert rows == [(PNG, None, "a", ""), (PNG, None, "b", "")]


def test_parquet_dictionary_and_large_texts(tmp_path):
    texts = pa.array(["a", "b", "a"]).dictionary_encode()
    urls = pa.array(["http://u"] * 3, pa.large_string())
    pq.write_table(pa.table({"url": urls, "alt_text": texts}), tmp_path / "a.parquet")
    rows, _ = read("parquet", tmp_path / "a.parquet")
    assert [row[2] for row in rows] == ["a", "b", "a"]


def test_parquet_with_bytes_that_are_no_utf8(tmp_path):
    texts = pa.array([b"good", b"b\xffd"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"url": ["u", "u"], "alt_text": texts}), tmp_path / "a")
    rows, drops = read("parquet", tmp_path / "a")
    assert len(rows) == 1 and drops == {"undecodable text": 1}


def test_a_large_parquet_file_is_cut_at_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "SHARD_ROWS", 200)
    table = pa.table({"url": [f"u{n}" for n in range(1000)], "alt_text": ["t"] * 1000})
    for name in ("b.parquet", "a.parquet"):
        pq.write_table(table, tmp_path / name, row_group_size=100)
    config = SourceConfig("parquet", str(tmp_path))
    shards = list_shards(config)
    assert [s.name for s in shards[:2]] == ["a.parquet[0:2]", "a.parquet[2:4]"]
    assert len(shards) == 10 and shards == list_shards(config)
    rows, _ = read("parquet", tmp_path / "b.*")
    assert [row[1] for row in rows] == table["url"].to_pylist()


def test_missing_columns_and_wrong_types_are_refused(tmp_path):
    with pytest.raises(InputError, match="no files at .*none"):
        read("parquet", tmp_path / "none")
    pq.write_table(pa.table({"url": ["u"], "text": ["t"]}), tmp_path / "a")
    with pytest.raises(
        InputError, match=r"lacks the columns \['alt_text'\]; it has \["
    ):
        read("parquet", tmp_path / "a")
    with pytest.raises(InputError, match=r"lacks the columns \['lang'\]"):
        read("parquet", tmp_path / "a", text_column="text", language_column="lang")
    pq.write_table(pa.table({"alt_text": ["t"]}), tmp_path / "b")
    with pytest.raises(InputError, match="neither 'image' nor 'url'"):
        read("parquet", tmp_path / "b")
    pq.write_table(pa.table({"image": [1], "alt_text": ["t"]}), tmp_path / "c")
    with pytest.raises(
        InputError, match="column 'image' of .* is int64; wanted binary"
    ):
        read("parquet", tmp_path / "c")
    (tmp_path / "d").write_text("no parquet")
    with pytest.raises(InputError, match="is not a Parquet file"):
        read("parquet", tmp_path / "d")
    with pytest.raises(InputError, match="kind is 'zip'; wanted one of parquet, csv"):
        read("zip", tmp_path)


@pytest.mark.parametrize(("kind", "separator"), [("csv", ","), ("tsv", "\t")])
def test_csv_and_tsv(tmp_path, kind, separator):
    lines = [["url", "alt_text", "language"], ["u1", '"two\nlines"', "en"]]
    lines += [["u2", "", ""], ["u3", "a", "b", "c"], ["u4"], [""]]
    text = "".join(separator.join(line) + "\r\n" for line in lines)
    (tmp_path / f"a.{kind}").write_bytes(text.encode("utf-8-sig"))
    (tmp_path / f"b.{kind}.gz").write_bytes(gzip.compress(text.encode()))
    rows, drops = read(kind, tmp_path, language="xx")
    expected = [(None, "u1", "two\nlines", "en"), (None, "u2", "", "xx")]
    assert rows == 2 * expected
    assert drops == {"fields do not match the header": 4}


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_long_csv_is_cut_into_shards(tmp_path, monkeypatch, name, encoding):
    texts = [f"e\u0301 {i}\nnext line, {'x' * 50}" for i in range(10)] + ["x" * 200]
    lines = "".join(f'u{i},"{text}"\r\n' for i, text in enumerate(texts))
    content = f"url,alt_text\r\n{lines}lonely\r\n".encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if ".gz" in name else content)
    monkeypatch.setattr("data.sources.tables.MAX_FIELD_CHARACTERS", 150)
    whole = read("csv", tmp_path, encoding=encoding)
    assert [row[2] for row in whole[0]] == texts[:-1]
    assert whole[1] == {"bad csv row": 1, "fields do not match the header": 1}
    for rows, shards in ((1, 12), (2, 6), (3, 4), (4, 3)):
        monkeypatch.setattr("data.sources.tables.CSV_SHARD_ROWS", rows)
        config = SourceConfig("csv", str(tmp_path), encoding=encoding)
        assert len(list_shards(config)) == shards, rows
        assert read("csv", tmp_path, encoding=encoding) == whole


def test_csv_of_bad_bytes_nul_and_10_megabytes(tmp_path):
    long = b"x" * 10_000_000
    content = b"url,alt_text\nu,caf\xe9\nu,a\0b\nu," + long + b"\nu,caf\xc3\xa9\n"
    (tmp_path / "a.csv").write_bytes(content)
    rows, drops = read("csv", tmp_path / "a.csv", max_characters=100)
    assert [row[2] for row in rows] == ["x" * 100, "café"]
    assert drops == {"undecodable text": 1, "NUL byte": 1}
    rows, drops = read("csv", tmp_path / "a.csv", encoding="latin-1")
    assert rows[0][2] == "café" and drops == {"NUL byte": 1}


def test_csv_with_a_field_over_the_bound_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_FIELD_CHARACTERS", 1000)
    (tmp_path / "a.csv").write_text(f"url,alt_text\nu,{'x' * 1500}\nu,y\n")
    rows, drops = read("csv", tmp_path / "a.csv")
    assert [row[2] for row in rows] == ["y"] and drops == {"bad csv row": 1}


def test_csv_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InputError, match="is empty; wanted a first line"):
        read("csv", tmp_path / "empty.csv")
    (tmp_path / "wide.csv").write_bytes("url,alt_text\nu,t\n".encode("utf-16"))
    with pytest.raises(InputError, match="set the source's field `encoding`"):
        read("csv", tmp_path / "wide.csv")
    assert read("csv", tmp_path / "wide.csv", encoding="utf-16")[0][0][2] == "t"
    with pytest.raises(InputError, match="unknown encoding 'utf-99'"):
        read("csv", tmp_path / "wide.csv", encoding="utf-99")


def test_truncated_gzip_keeps_what_stands_before_the_cut(tmp_path):
    text = "url,alt_text\n" + "".join(f"u{n},{n * 7919 % 9973}\n" for n in range(30000))
    content = gzip.compress(text.encode())
    (tmp_path / "a.csv.gz").write_bytes(content[: len(content) // 2])
    rows, drops = read("csv", tmp_path)
    assert 1000 < len(rows) < 30000 and drops["truncated file"] == 1


def test_folder_follows_paths_inside_it_only(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "inner.png").symlink_to("sub/a.png")
    paths = ["sub/a.png", "inner.png", "sub/../inner.png", "none.png", "sub", "b\0"]
    paths += ["../secret.png", str(tmp_path / "secret.png"), "link.png"]
    lines = "".join(f"{path},text {n}\n" for n, path in enumerate(paths))
    (folder / "list.csv").write_text("path,alt_text\n" + lines)
    rows, drops = read("folder", folder, language="en")
    assert rows == [(PNG, None, f"text {n}", "en") for n in range(3)]
    assert drops == {
        "image file missing": 2,
        "image is no file": 1,
        "path outside its folder": 3,
    }


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_webdataset_pairs(tmp_path, name, mode):
    fields = {"caption": "two", "url": "http://u/2", "language": "de"}
    members = [
        ("x/1.jpg", PNG),
        ("x/1.txt", b"one"),
        ("y/1.PNG", PNG),
        ("y/1.json", json.dumps(fields).encode()),
        ("3.json", b'{"alt_text": "three", "url": "http://u/3"}'),
        ("4.webp", PNG),
        ("5.jpg", PNG),
        ("5.txt", b"caf\xe9"),
        ("6.txt", b"no picture"),
        ("7.jpg", PNG),
        ("7.json", b"[" * 100_000),
        ("8.jpg", PNG),
        ("8.json", b'{"text": "\\ud800"}'),
        ("9.jpg", PNG),
        ("9.txt", b""),
    ]
    write_tar(tmp_path / name, members, mode)
    rows, drops = read("webdataset", tmp_path, language="en")
    assert rows == [
        (PNG, None, "one", "en"),
        (PNG, "http://u/2", "two", "de"),
        (None, "http://u/3", "three", "en"),
        (PNG, None, "", "en"),
    ]
    assert drops == {
        "no text": 1,
        "undecodable text": 2,
        "no image and no url": 1,
        "bad json": 1,
    }


def test_tar_names_that_leave_it_and_links_are_ignored(tmp_path):
    path = tmp_path / "a.tar"
    members = [("../../evil.jpg", PNG), ("/evil.jpg", PNG), ("a.jpg", PNG)]
    write_tar(path, [*members, ("a.txt", b"a")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    rows, drops = read("webdataset", path)
    assert rows == [(PNG, None, "a", "")]
    assert drops == {"path outside the tar": 2, "link or device in the tar": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_a_cut_tar_keeps_the_pairs_before_the_cut(tmp_path):
    members = [(f"{n}.{s}", b"t" * 700) for n in range(5) for s in ("jpg", "txt")]
    write_tar(tmp_path / "whole.tar", members)
    content = (tmp_path / "whole.tar").read_bytes()
    for pairs, cut in [
        (2, 2 * 3072 + 600),  # Inside a picture.
        (2, 2 * 3072 + 100),  # Inside a header.
        (2, 2 * 3072 + 1536 + 700),  # Inside a text.
        (2, 2 * 3072),  # Between two members.
        (5, 5 * 3072),  # Before the end mark.
    ]:
        (tmp_path / "cut.tar").write_bytes(content[:cut])
        rows, drops = read("webdataset", tmp_path / "cut.tar")
        assert (len(rows), drops) == (pairs, {"truncated tar": 1}), cut
    packed = gzip.compress(content, mtime=0)
    (tmp_path / "cut.tar.gz").write_bytes(packed[: len(packed) - 20])
    assert read("webdataset", tmp_path / "cut.tar.gz")[1] == {"truncated tar": 1}
    (tmp_path / "no.tar").write_bytes(b"not a tar" * 1000)
    with pytest.raises(InputError, match="no.tar is not a tar file"):
        read("webdataset", tmp_path / "no.tar")


def test_tar_bombs_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.tars.MAX_IMAGE_BYTES", 1000)
    members = [("1.jpg", b"x" * 1001), ("1.txt", b"a"), ("2.jpg", PNG), ("2.txt", b"b")]
    write_tar(tmp_path / "a.tar", members)
    rows, drops = read("webdataset", tmp_path)
    assert [row[2] for row in rows] == ["b"] and drops == {"member too large": 1}
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("1.jpg"))
        tar.addfile(header)
    assert read("webdataset", tmp_path) == ([], {"truncated tar": 1})


@pytest.mark.parametrize("packing", ["webdataset", "parquet", "tfrecord", "files"])
def test_img2dataset_output(tmp_path, packing):
    rows = [
        {"caption": "one", "url": "http://u/1", "key": "000", "status": "success"},
        {"caption": "two", "url": "http://u/2", "key": "001", "status": "success"},
        {
            "caption": "three",
            "url": "http://u/3",
            "key": "002",
            "status": "failed_to_download",
        },
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if packing == "parquet":
        columns |= {"txt": columns["caption"], "jpg": [PNG, PNG, None]}
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    if packing == "webdataset":
        members = []
        for row in rows[:2]:
            parts = {"jpg": PNG, "txt": row["caption"].encode()}
            parts["json"] = json.dumps(row).encode()
            members += [(f"{row['key']}.{name}", c) for name, c in parts.items()]
        write_tar(tmp_path / "00000.tar", members)
    elif packing == "tfrecord":
        import tensorflow as tf

        from data.records.records import make_example

        with tf.io.TFRecordWriter(str(tmp_path / "00000.tfrecord")) as writer:
            for row in rows[:2]:
                fields = {name: value.encode() for name, value in row.items()}
                writer.write(make_example(**fields, jpg=PNG, width=3))
    elif packing == "files":
        (tmp_path / "00000").mkdir()
        for row in rows[:2]:
            (tmp_path / "00000" / f"{row['key']}.jpg").write_bytes(PNG)
    found, drops = read("img2dataset", tmp_path)
    expected = [(PNG, "http://u/1", "one", ""), (PNG, "http://u/2", "two", "")]
    assert found == expected
    assert drops == {"img2dataset: failed_to_download": 1}


def test_an_unfinished_img2dataset_shard_is_refused(tmp_path):
    path = tmp_path / "00000.parquet"
    path.write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match="img2dataset was stopped before"):
        read("img2dataset", tmp_path)
    pq.write_table(pa.table({"key": ["1"], "status": ["success"]}), path)
    with pytest.raises(InputError, match="no pictures beside .*wanted 00000.tar"):
        read("img2dataset", tmp_path)


def test_tfds_dataset_with_several_texts(tmp_path):
    import tensorflow_datasets as tfds

    from data.records.records import (
        image_feature,
        make_example,
        write_metadata,
        write_split,
    )

    texts = tfds.features.Sequence({"text": tfds.features.Text()})
    features = tfds.features.FeaturesDict(
        {"image": image_feature(), "captions": texts, "language": tfds.features.Text()}
    )
    pictures = []
    for n in range(3):  # Real ones: TFDS decodes the first to describe the dataset.
        file = io.BytesIO()
        Image.new("RGB", (2, 2), (n, 0, 0)).save(file, "png")
        pictures.append(file.getvalue())
    examples = [
        make_example(
            image=pictures[n],
            language=b"en",
            **{"captions/text": [f"a {n}".encode(), f"b {n}".encode()]},
        )
        for n in range(3)
    ]
    shards = write_split(tmp_path, "pairs", "train", iter(examples), 3, 2)
    write_metadata(tmp_path, "pairs", features, {"train": shards})
    config = SourceConfig("tfds", str(tmp_path), text_column="captions/text")
    assert len(list_shards(config)) == 2
    rows, drops = read("tfds", tmp_path, text_column="captions/text")
    assert rows == [
        (pictures[n], None, f"{which} {n}", "en") for n in range(3) for which in "ab"
    ]
    assert not drops
    with pytest.raises(InputError, match=r"has no split 'test'; it has \['train'\]"):
        read("tfds", tmp_path, split="test")
    with pytest.raises(InputError, match=r"lacks the features \['alt_text'\]"):
        read("tfds", tmp_path)
    with pytest.raises(InputError, match="no TFDS dataset or folder 'no_such_name'"):
        read("tfds", "no_such_name")


def test_html_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    root = tmp_path / "site"
    (root / "sub").mkdir(parents=True)
    (root / "a b.png").write_bytes(PNG)
    (root / "sub" / "b.png").write_bytes(PNG)
    page = """<title><img src=no alt=title></title><!-- <img src=no alt=no> -->
    <script>"<img src=no alt=script>"</script><a title="<img src=no alt=no>">
    <img src="b.png" alt="Caf&eacute; > bar">
    <IMG alt='root' src='/a%20b.png'><img src=http://h/c.png alt=>
    <img data-src=//h/d.png src=b.png alt=lazy><img src=b.png>
    <img src="../../secret.png" alt=x><img src=gone.png alt=y>
    <img alt="data" src="data:image/png;base64,iVBORw=="><img src=javascript:x alt=z>"""
    (root / "sub" / "page.html").write_text(page)
    rows, drops = read("html", root, language="en")
    assert rows == [
        (PNG, None, "Café > bar", "en"),
        (PNG, None, "root", "en"),
        (None, "http://h/c.png", "", "en"),
        (b"\x89PNG", None, "data", "en"),
    ]
    assert drops == {
        "no alt": 1,
        "path outside its folder": 1,
        "image file missing": 1,
        "no image and no url": 2,  # Of no scheme, and javascript:.
    }
    rows, _ = read("html", root, base_url="https://h/x/")
    assert rows[0][:2] == (PNG, "https://h/x/sub/b.png")
    assert rows[3][:2] == (None, "https://h/d.png")


def test_html_base():
    page = b"<base href='http://b/x/'><base href='http://c/'><img src=1.png alt=t>"
    rows = list(read_page(page, "", "http://a/", None, collections.Counter()))
    assert rows == [(None, "http://b/x/1.png", "t")]


@pytest.mark.parametrize(
    ("page", "charset"),
    [
        ("<p>é</p>".encode("utf-8-sig"), ""),
        (b"\xff\xfe" + "<p>é</p>".encode("utf-16-le"), ""),
        (b"\xe9", "ISO-8859-1"),
        (b'<meta charset="windows-1252">\xe9', ""),
        (b'<meta http-equiv=content-type content="text/html; charset=latin1">\xe9', ""),
        ("é".encode(), "rot13"),
    ],
)
def test_html_encodings(page, charset):
    assert "é" in decode_page(page, charset)


def test_a_text_with_bad_bytes_is_dropped_and_the_page_goes_on():
    drops = collections.Counter()
    page = b"<img src=http://a/1 alt=caf\xe9><img src=http://a/2 alt=b>"
    assert [row[2] for row in read_page(page, "", "", None, drops)] == ["b"]
    assert drops == {"undecodable text": 1}


@pytest.mark.parametrize(
    "bomb",
    [
        b"<div>" * 1_000_000,
        b"".join(b"<p><font color=%d>" % n for n in range(100_000)),
        b"<img " + b" ".join(b"a%d=1" % n for n in range(500_000)) + b">",
        b"<!--" * 1_000_000,
        b"<a " * 1_000_000,
        b"<script>" * 500_000,
        b"<a b='" * 500_000,
        b'<img alt="' * 500_000,
        b"<" * 5_000_000,
        b"<title></titl" * 300_000,
        b"<a" + b" " * 5_000_000,
        b"<![CDATA[" * 500_000,
        b"<meta " * 800_000,
        b"<img src=http://a alt=x>" * 100_000,
        b"x" * 10_000_001,
    ],
)
def test_html_bombs_take_linear_time(bomb):
    began = time.monotonic()
    drops = collections.Counter()
    page = b"<img src=http://a/1 alt=first>" + bomb
    rows = list(read_page(page, "", "", None, drops))
    assert time.monotonic() - began < 10
    if len(bomb) > 10_000_000:
        assert not rows and drops == {"page too large": 1}
    else:
        assert rows[0] == (None, "http://a/1", "first") and len(rows) <= 10_000


def test_tags_are_those_that_a_whole_page_parser_finds():
    from selectolax.lexbor import LexborHTMLParser

    parts = ["<img src=1 alt=a>", "<img alt='x>y' src=2 />", '<img alt=5" src=3>']
    parts += ["<p class=a/b>", "<b title='<img src=no>'>", "<!-- <img> -->", "<!-->"]
    parts += [
        "</p <img src=4>",
        "<!doctype html>",
        "<img/src=5/alt=c>",
        "< img src=no>",
    ]
    parts += ["<style><img src=no></style>", "<img src = '6' alt = 'é&amp;' alt=2>"]
    parts += ["<imgx src=no>", "<IMG\nSRC=7\n>", "<img ==8>", "<textarea></p><img>"]
    for last in range(len(parts) + 1):
        page = "".join(parts[:last])
        found = [
            LexborHTMLParser(t).css_first("img").attributes for t in image_tags(page)
        ]
        wanted = [node.attributes for node in LexborHTMLParser(page).css("img")]
        assert found == wanted, page


def test_warc(tmp_path):
    def record(kind, url, body, http=b"text/html; charset=latin1"):
        payload = b"HTTP/1.1 200 OK\r\nContent-Type: " + http + b"\r\n\r\n" + body
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
        head += "Content-Type: application/http; msgtype=response\r\n"
        head += f"Content-Length: {len(payload)}\r\n\r\n"
        return gzip.compress(head.encode() + payload + b"\r\n\r\n")

    page = b"<img src=1.png alt='caf\xe9'>"
    records = [
        record("response", "http://a/x/", page),
        record("response", "http://b/", page, b"image/png"),
        record("response", "http://c/", page),
    ]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records))
    rows, drops = read("html", tmp_path, language="fr")
    assert rows == [
        (None, "http://a/x/1.png", "café", "fr"),
        (None, "http://c/1.png", "café", "fr"),
    ]
    assert not drops
    (tmp_path / "a.warc.gz").write_bytes(b"".join(records)[:-30])
    rows, drops = read("html", tmp_path)
    assert len(rows) == 1 and drops == {"truncated warc": 1}
