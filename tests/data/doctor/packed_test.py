import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from data.doctor.__main__ import diagnose
from tests import tiny
from tests.input.written import WRITERS, pairs_of, write_format, write_tar, write_tars

PICTURE = tiny.draw("red top", 3)


@pytest.mark.parametrize("name", WRITERS)
def test_sound_files_of_each_format_have_no_findings(tmp_path, capsys, name):
    part = write_format(name, tmp_path, [5, 4])
    folder = tmp_path / name
    assert part.directory == str(folder)
    assert diagnose(folder) == []
    said = capsys.readouterr().out
    assert "no findings; splits all; 2 shards, 9 records read, 9 pictures" in said


def test_faults_of_samples_and_of_the_index_are_found(tmp_path, capsys):
    folder = tmp_path / "tars"
    write_tars(folder, pairs_of([6, 6]))
    rows = [{"png": PICTURE, "txt": b"pair %d" % i} for i in range(5)]
    rows[1]["png"] = PICTURE[:50]
    del rows[2]["txt"]
    rows[3]["txt"] = b" "
    write_tar(folder / "00000.tar", rows)
    found = {finding.what: finding for finding in diagnose(folder)}
    wanted = {"index", "damaged records", "undecodable pictures", "empty texts"}
    assert {*found} == wanted
    assert found["index"].fix == f"python -m data.index {folder}"
    assert found["damaged records"].where.endswith("record 2 (no text)")
    assert "record 1" in found["undecodable pictures"].where
    assert "record 3" in found["empty texts"].where
    assert "input.max_replaced" in found["damaged records"].fix
    (folder / "index.json").unlink()
    capsys.readouterr()
    diagnose(folder)
    assert "not checked: index (none beside the tars" in capsys.readouterr().out


def test_a_tar_and_a_parquet_file_that_are_cut_short_are_found(tmp_path):
    write_tars(tmp_path / "tars", pairs_of([6]))
    path = tmp_path / "tars" / "00000.tar"
    path.write_bytes(path.read_bytes()[:9000])
    cut = [f for f in diagnose(tmp_path / "tars") if f.what == "damaged records"]
    assert "truncated tar" in cut[0].where
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.parquet").write_bytes(b"PAR1" + b"x" * 100)
    (finding,) = diagnose(tmp_path / "rows")
    assert "is not a Parquet file" in finding.where


def test_the_column_of_the_texts_is_chosen_by_its_name(tmp_path):
    table = pa.table({"image": [PICTURE], "text": [""], "note": ["a"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [finding.what for finding in diagnose(tmp_path)] == ["empty texts"]
    assert diagnose(tmp_path, text="note") == []
    with pytest.raises(InputError, match=r"wanted a folder with dataset_info.json, w"):
        diagnose(tmp_path.parent / "nowhere")


def test_files_without_a_record_and_names_without_a_file_are_found(tmp_path):
    cases = {"tars": "a.tar", "rows": "a.parquet", "folder": "b.parquet"}
    paths = {name: tmp_path / name / file for name, file in cases.items()}
    for path in paths.values():
        path.parent.mkdir()
    paths["tars"].write_bytes(bytes(10240))
    empty = {"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}
    pq.write_table(pa.table(empty), paths["rows"])
    paths["folder"].mkdir()
    for name in ("tars", "rows"):
        (finding,) = diagnose(tmp_path / name)
        assert (finding.what, finding.found) == ("records", "0")
    (finding,) = diagnose(tmp_path / "folder")
    assert (finding.found, finding.where) == ("no file", str(paths["folder"]))
