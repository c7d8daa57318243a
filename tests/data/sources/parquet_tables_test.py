import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from data.sources import parquet_tables
from data.sources.config import SourceConfig
from data.sources.source import list_shards
from tests.data.sources.reading import PNG, read


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
    assert len(rows) == 1
    assert drops == {"undecodable text": 1}


def test_a_large_parquet_file_is_cut_at_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_tables, "SHARD_ROWS", 200)
    table = pa.table({"url": [f"u{n}" for n in range(1000)], "alt_text": ["t"] * 1000})
    for name in ("b.parquet", "a.parquet"):
        pq.write_table(table, tmp_path / name, row_group_size=100)
    config = SourceConfig("parquet", str(tmp_path))
    shards = list_shards(config)
    assert [s.name for s in shards[:2]] == ["a.parquet[0:2]", "a.parquet[2:4]"]
    assert len(shards) == 10
    assert shards == list_shards(config)
    rows, _ = read("parquet", tmp_path / "b.*")
    assert [row[1] for row in rows] == table["url"].to_pylist()


def test_missing_columns_and_wrong_types_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no files at .*none"):
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
        InputError, match=r"column 'image' of .* is int64; wanted binary"
    ):
        read("parquet", tmp_path / "c")
    (tmp_path / "d").write_text("no parquet")
    with pytest.raises(InputError, match="is not a Parquet file"):
        read("parquet", tmp_path / "d")
