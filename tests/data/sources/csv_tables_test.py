import gzip

import pytest

from align_jax.errors import InputError
from data.sources import csv_tables
from data.sources.config import SourceConfig
from data.sources.source import list_shards
from tests.data.sources.reading import PNG, read


@pytest.mark.parametrize(
    ("kind", "separator", "quoted"),
    [("csv", ",", '"two\nlines"'), ("tsv", "\t", "two\rlines")],
)
def test_csv_and_tsv(tmp_path, kind, separator, quoted):
    lines = [["url", "alt_text", "language"], ["u1", quoted, "en"]]
    lines += [["u2", "", ""], ["u3", "a", "b", "c"], ["u4"], [""]]
    text = "".join(separator.join(line) + "\r\n" for line in lines)
    (tmp_path / f"a.{kind}").write_bytes(text.encode("utf-8-sig"))
    (tmp_path / f"b.{kind}.gz").write_bytes(gzip.compress(text.encode()))
    rows, drops = read(kind, tmp_path, language="xx")
    text = quoted.strip('"')
    expected = [(None, "u1", text, "en"), (None, "u2", "", "xx")]
    assert rows == 2 * expected
    assert drops == {"fields do not match the header": 4}


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_long_csv_is_cut_into_shards(tmp_path, monkeypatch, name, encoding):
    texts = [f"e\u0301 {i}\nnext line, {'x' * 50}" for i in range(10)] + ["x" * 200]
    lines = "".join(f'u{i},"{text}"\r\n' for i, text in enumerate(texts))
    content = f"url,alt_text\r\n{lines}lonely\r\n".encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if ".gz" in name else content)
    monkeypatch.setattr(csv_tables, "MAX_FIELD_CHARACTERS", 150)
    whole = read("csv", tmp_path, encoding=encoding)
    assert [row[2] for row in whole[0]] == texts[:-1]
    assert whole[1] == {"bad csv row": 1, "fields do not match the header": 1}
    for rows, shards in ((1, 12), (2, 6), (3, 4), (4, 3)):
        monkeypatch.setattr(csv_tables, "SHARD_ROWS", rows)
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
    assert rows[0][2] == "café"
    assert drops == {"NUL byte": 1}


def test_csv_with_a_field_over_the_bound_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_tables, "MAX_FIELD_CHARACTERS", 1000)
    (tmp_path / "a.csv").write_text(f"url,alt_text\nu,{'x' * 1500}\nu,y\n")
    rows, drops = read("csv", tmp_path / "a.csv")
    assert [row[2] for row in rows] == ["y"]
    assert drops == {"bad csv row": 1}


def test_csv_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InputError, match="is empty or its first line is damaged"):
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
    assert 1000 < len(rows) < 30000
    assert drops["truncated file"] == 1


def test_folder_follows_paths_inside_it_only(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "folder.tsv"
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
