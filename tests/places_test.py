import errno
import gc
import os
import pathlib
import re
import subprocess
import sys

import pytest

from align_jax import dataset_folder, places
from align_jax.command_line import read_command_line
from align_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
URL = "gs://bucket/run/config.json"


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_user_types_becomes_a_place_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    typed = ["runs/a", "./runs//b/", "~/c", pathlib.Path("d"), str(tmp_path / "e")]
    wanted = ["runs/a", "runs/b", "home/c", "d", "e"]
    found = [places.resolve(place) for place in typed]
    assert found == [str(tmp_path / name) for name in wanted]
    monkeypatch.chdir("/")
    assert [places.resolve(place) for place in found] == found
    assert places.resolve(URL) == URL
    assert places.is_url(URL)
    assert places.local_path("~/c") == tmp_path / "home" / "c"
    with pytest.raises(InputError, match=r"gs://.* is a URL; wanted a path on this"):
        places.local_path(URL)


def test_an_empty_path_is_refused():
    for read in (places.resolve, places.local_path, dataset_folder.newest_version):
        with pytest.raises(
            InputError, match="a path is empty; wanted a file or a fold"
        ):
            read("")


def test_a_workdir_is_the_same_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = f"--config={ROOT}/configs/quickstart.py"
    for typed in ("runs/mine", "./runs/mine/", "~/runs/mine"):
        told = read_command_line(["main.py", config, f"--workdir={typed}"])
        assert told.workdir == str(tmp_path / "runs" / "mine")
    (tmp_path / "mine.py").write_text((ROOT / "configs" / "quickstart.py").read_text())
    for flag in ("--config=~/mine.py", "--config=mine.py", "--config=./mine.py"):
        assert read_command_line(["main.py", flag, "--workdir=x"]).fields == told.fields


def test_nothing_else_in_the_house_resolves_paths():
    for package in ("align_jax", "data"):
        for path in (ROOT / package).rglob("*.py"):
            others = r"tf\.io\.gfile|os\.path\.abspath|expanduser"
            found = re.findall(others, path.read_text())
            assert path.name == "places.py" or not found, (path, found)


def test_files_come_back_as_they_were_written(tmp_path):
    file = str(tmp_path / "file")
    places.write_bytes(file, b"\x00\xff")
    assert places.read_bytes(file) == b"\x00\xff"
    assert places.size(file) == 2
    places.write_text(file, "\u00e4\r\n")
    assert places.read_text(file) == "\u00e4\r\n"
    places.write_json(file, {"a": [1]})
    assert places.read_json(file) == places.read_object(file) == {"a": [1]}
    with places.opening(file) as opened:
        opened.seek(2)
        assert opened.read(3) == b'  "'
    assert abs(places.modified(file) - os.stat(file).st_mtime) < 1e-3
    assert names(tmp_path) == ["file"]


def test_what_cannot_be_read_is_named(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(InputError, match="missing is missing"):
        places.read_bytes(missing)
    with pytest.raises(InputError, match="missing is missing"):
        places.list_names(missing)
    assert places.size(missing) is places.modified(missing) is None
    with pytest.raises(InputError, match=r"missing.udcff is missing") as found:
        places.read_bytes(os.fsdecode(os.fsencode(missing) + b"\xff"))
    assert str(found.value).encode()  # it can be printed
    for read in (places.read_text, places.list_names):
        with pytest.raises(InputError, match=r"cannot be read: .*embedded null byte"):
            read("a\0b")
    with pytest.raises(InputError, match=r"cannot be read: .*Is a directory"):
        places.read_bytes(tmp_path)
    (tmp_path / "broken").write_bytes(b'{"\xff')
    with pytest.raises(InputError, match="broken is not valid JSON"):
        places.read_json(tmp_path / "broken")
    with pytest.raises(InputError, match="broken is not UTF-8 text"):
        places.read_text(tmp_path / "broken")
    (tmp_path / "list").write_text("[1]")
    with pytest.raises(InputError, match="list holds a list; wanted an object"):
        places.read_object(tmp_path / "list")


def interrupt(file, error):
    with places.replacing(file) as temporary:
        pathlib.Path(temporary).write_text("half")
        raise error


def test_an_interrupted_file_leaves_the_one_before(tmp_path):
    file = tmp_path / "file"
    places.write_text(file, "before")
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            interrupt(file, error)
        assert file.read_text() == "before"
        assert names(tmp_path) == ["file"]


def test_two_processes_do_not_write_under_one_name(tmp_path):
    file = tmp_path / "file"
    with places.replacing(file) as one, places.replacing(file) as other:
        pathlib.Path(one).write_text("one")
        pathlib.Path(other).write_text("other")
    assert file.read_text() == "one"
    assert names(tmp_path) == ["file"]


def test_a_folder_is_replaced_where_it_is_empty(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with places.replacing(f"{folder}/") as filling:
        places.make_folder(f"{filling}/inner")
    assert names(folder) == ["inner"]
    with pytest.raises(OSError, match="not empty"), places.replacing(folder) as filling:
        places.make_folder(filling)
    assert names(folder) == ["inner"]
    assert names(tmp_path) == ["folder"]


def test_a_full_disk_ends_in_one_line(tmp_path):
    with pytest.raises(
        InputError, match=r"f cannot be written: .*space.*was written b"
    ):
        with places.writing("f"):
            raise OSError(errno.ENOSPC, "no space")
    with pytest.raises(InputError, match=r"written: UNAVAILABLE: x{87} \.\.\. x{400};"):
        with places.writing("f"):
            raise ValueError(f"UNAVAILABLE: {'x' * 1000}")
    with pytest.raises(ValueError, match="a mistake of ours"), places.writing("f"):
        raise ValueError("a mistake of ours")
    (tmp_path / "file").write_text("")
    for write in (places.make_folder, lambda place: places.write_text(place, "")):
        with pytest.raises(InputError, match="file/below cannot be written"):
            write(tmp_path / "file" / "below")
    with pytest.raises(InputError, match="none/log cannot be written"):
        with places.appending(tmp_path / "none" / "log"):
            pass


def test_lines_are_added_at_the_end(tmp_path):
    log = tmp_path / "log"
    for line in ("one\n", "\u00e4\n"):
        with places.appending(log) as file:
            file.write(line)
    assert log.read_bytes() == "one\n\u00e4\n".encode()
    with pytest.raises(OSError, match="of what it is used for"):
        with places.appending(log):
            raise OSError("of what it is used for")


@pytest.mark.filterwarnings("error")
def test_a_log_that_is_left_open_says_no_more_than_its_error():
    context = places.appending("/dev/full")
    file = context.__enter__()
    with pytest.raises(InputError, match=r"/dev/full cannot be written: .*No space"):
        with places.writing("/dev/full"):
            print("line", file=file, flush=True)
    del file, context  # an error here would be printed as a warning
    gc.collect()


def test_a_folder_is_free_where_only_names_that_do_not_count_are_in_it(tmp_path):
    assert places.is_free(tmp_path)
    assert places.is_free(tmp_path / "none")
    (tmp_path / "config.json.1a.tmp").write_text("{")
    assert not places.is_free(tmp_path)
    assert places.is_free(tmp_path, (".tmp",))
    (tmp_path / "thesis~").write_text("")
    assert not places.is_free(tmp_path, (".tmp",))
    assert places.list_names(tmp_path) == ["config.json.1a.tmp", "thesis~"]
    assert not places.is_free(tmp_path / "thesis~")


def test_anything_is_removed_and_no_link_is_followed(tmp_path):
    kept, link = tmp_path / "kept", tmp_path / "link"
    (kept / "inner").mkdir(parents=True)
    link.symlink_to(kept / "inner")
    for place in (link, tmp_path / "none"):
        places.remove(place)
    assert names(tmp_path) == ["kept"]
    assert names(kept) == ["inner"]
    places.remove(kept)
    assert places.is_free(tmp_path)
    assert not places.exists(kept)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(InputError, match="ftp://x has an unknown scheme; wanted a loc"):
        places.exists("ftp://x")


# The first lines of programs that use a bucket in memory as gs, without TensorFlow.
BUCKET = """
import os, sys
os.environ["EPATH_USE_TF"] = "0"
sys.modules["tensorflow"] = None
import fsspec
from fsspec.implementations.memory import MemoryFileSystem

class Bucket(MemoryFileSystem):
    protocol = "gcs"
    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))

fsspec.register_implementation("gcs", Bucket, clobber=True)
from align_jax import dataset_folder, places
from align_jax.command_line import read_command_line
from align_jax.errors import InputError
"""


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", BUCKET + program], check=True, cwd=ROOT)


def test_a_bucket_holds_files_as_a_disk_does():
    run("""
folder = "gs://bucket/run"
assert places.is_free(folder) and places.size(folder + "/a") is None
places.make_folder(folder)
places.write_json(folder + "/config.json", {"a": 1})
places.write_json(folder + "/config.json", {"a": 2})
assert places.read_object(folder + "/config.json") == {"a": 2}
assert places.list_names(folder) == ["config.json"]
assert places.exists(folder) and places.is_folder(folder)
assert not places.is_free(folder) and places.is_free(folder, (".json",))
assert places.size(folder + "/config.json") == 13
with places.opening(folder + "/config.json") as file:
    file.seek(4)
    assert file.read(3) == b'"a"'
places.remove(folder)
assert not places.exists(folder + "/config.json")
try:
    places.read_bytes(folder + "/config.json")
except InputError as error:
    assert str(error) == "gs://bucket/run/config.json is missing"
""")


def test_a_missing_package_of_a_scheme_is_named():
    run("""
sys.modules["s3fs"] = None
try:
    places.exists("s3://bucket/run")
except InputError as error:
    assert "s3://bucket/run cannot be read: " in str(error) and "s3fs" in str(error)
else:
    raise SystemExit("not refused")
""")
