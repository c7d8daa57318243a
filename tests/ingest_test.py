import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import DataError
from data.ingest import IngestConfig, identify, normalise, read_pairs, shuffle_key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Red\t APPLE \n", "red apple"),
        ("ﬁve ①", "five 1"),
        ("Straße", "strasse"),
        ("a\0b\u200bc", "a b c"),
        ("ΜΆΪΟΣ", "μάϊοσ"),
        ("猫　犬", "猫 犬"),
        ("", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalise(text, 100) == expected
    assert normalise(expected, 100) == expected


def test_a_long_text_is_cut():
    assert normalise("abc def", 4) == "abc"


def test_keys_depend_on_seed_image_and_text_and_fit_64_bits():
    keys = {
        shuffle_key(s, i, t) for s in (0, 1) for i in ("a", "b") for t in ("x", "y")
    }
    assert len(keys) == 8
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert shuffle_key(0, "a", "x") == shuffle_key(0, "a", "x")


def test_pairs_and_pictures_are_read(tmp_path):
    path = tmp_path / "raw.parquet"
    table = {
        "image": [b"one", b"one", None],
        "alt_text": ["A cat", "Cat!", None],
        "language": ["en", "en", None],
        "source": ["x"] * 3,
    }
    pq.write_table(pa.table(table), path)
    ((pairs, pictures),) = read_pairs(IngestConfig(str(path)), seed=0)
    assert pairs["text"].to_pylist() == ["a cat", "cat!", ""]
    assert pairs["alt_text"].to_pylist() == ["A cat", "Cat!", ""]
    assert pictures == {identify(b"one"): b"one", identify(b""): b""}


def test_what_is_no_raw_table_is_refused(tmp_path):
    def read(path):
        return list(read_pairs(IngestConfig(str(path)), 0))

    with pytest.raises(DataError, match="no file .*none .config.ingest.pairs"):
        read(tmp_path / "none")
    (tmp_path / "text").write_text("not parquet at all")
    with pytest.raises(DataError, match="is not a Parquet file"):
        read(tmp_path / "text")
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "short")
    with pytest.raises(
        DataError, match=r"lacks the columns \['alt_text', 'language'\]"
    ):
        read(tmp_path / "short")
    schema = pa.schema(
        [("image", "binary"), ("alt_text", "string"), ("language", "string")]
    )
    pq.write_table(schema.empty_table(), tmp_path / "empty")
    with pytest.raises(DataError, match="holds no rows"):
        read(tmp_path / "empty")


@pytest.mark.parametrize("column", ["image", "alt_text"])
def test_a_column_of_another_type_is_refused(tmp_path, column):
    table = {"image": [b"x"], "alt_text": ["x"], "language": ["en"], column: [1]}
    pq.write_table(pa.table(table), tmp_path / "raw")
    with pytest.raises(DataError, match=f"column '{column}' of .* is int64; wanted"):
        list(read_pairs(IngestConfig(str(tmp_path / "raw")), 0))


def test_a_damaged_page_is_refused(tmp_path):
    path = tmp_path / "raw"
    texts = [f"text {n}" for n in range(500)]
    table = {"image": [b"x"] * 500, "alt_text": texts, "language": ["en"] * 500}
    pq.write_table(pa.table(table), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    start = len(content) // 3
    content[start : start + 400] = bytes(range(1, 201)) * 2
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        list(read_pairs(IngestConfig(str(path)), 0))
