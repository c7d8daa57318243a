import collections
import pathlib
import sys

import pyarrow.parquet as pq
import pytest

from align_jax.errors import InputError
from data import clipart

WORK = """<svg xmlns="http://www.w3.org/2000/svg"><metadata>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:dc="http://purl.org/dc/elements/1.1/"><Work xmlns="http://x/">
<dc:title>{title}</dc:title><dc:description>{description}</dc:description>
<dc:subject><rdf:Bag>{tags}</rdf:Bag></dc:subject>
<dc:publisher><title>Open Clip Art Library</title></dc:publisher>
<dc:language>{language}</dc:language></Work></rdf:RDF></metadata></svg>"""

BOMB = '<!DOCTYPE svg [<!ENTITY a0 "aaaaaaaaaa">' + "".join(
    f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(12)
)


def add(root: pathlib.Path, name: str, svg: str | None = None, **fields) -> None:
    fields = {"title": "", "description": "", "tags": "", "language": "en"} | fields
    for kind, content in (("svg", svg or WORK.format(**fields)), ("png", name)):
        path = root / kind / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def write(tmp_path: pathlib.Path) -> tuple[list[dict], collections.Counter]:
    counts: collections.Counter = collections.Counter()
    out = tmp_path / "out"
    clipart.write_pairs(out, tmp_path / "root", counts)
    files = sorted(out.iterdir())
    return [row for f in files for row in pq.read_table(f).to_pylist()], counts


def test_title_description_and_tags_are_a_pair_each(tmp_path):
    tags = "<rdf:li>cat</rdf:li><rdf:li> </rdf:li><rdf:li>pet</rdf:li>"
    add(
        tmp_path / "root",
        "a/cat",
        title=" A\n cat &amp; hat ",
        description="it sits",
        tags=tags,
        language="English",
    )
    add(tmp_path / "root", "a/same", title="one", description="one")
    rows, counts = write(tmp_path)
    cat = {"image": b"a/cat", "language": "en", "url": "png/a/cat.png"}
    assert rows == [
        cat | {"alt_text": "A cat & hat"},
        cat | {"alt_text": "it sits"},
        cat | {"alt_text": "cat, pet"},
        {"image": b"a/same", "language": "en", "url": "png/a/same.png"}
        | {"alt_text": "one"},
    ]
    assert counts["with_title"] == 2
    assert counts["with_tags"] == 1


@pytest.mark.parametrize(
    ("written", "language"),
    [
        ("EN", "en"),
        ("en_GB en_US", "en"),
        ("es-ES", "es"),
        ("eng", "en"),
        ("All", None),
        ("N/A", None),
        ("", None),
    ],
)
def test_languages_become_two_letters_or_none(tmp_path, written, language):
    add(tmp_path / "root", "x", title="t", language=written)
    rows, _ = write(tmp_path)
    assert rows[0]["language"] == language


def test_what_cannot_be_used_is_counted(tmp_path):
    root = tmp_path / "root"
    add(root, "good", title="good")
    add(root, "broken", svg="<svg><metadata>")
    add(root, "encoding", svg='<?xml version="1.0" encoding="klingon"?><svg/>')
    add(root, "bare", svg="<svg/>")
    add(root, "silent")
    add(root, "alone", title="alone")
    (root / "png" / "alone.png").unlink()
    rows, counts = write(tmp_path)
    assert [row["alt_text"] for row in rows] == ["good"]
    assert counts["drawings"] == 6
    assert counts["broken_svg"] == 2
    assert counts["no_metadata"] == counts["no_text"] == counts["no_picture"] == 1


def test_entities_neither_explode_nor_read_files(tmp_path):
    root = tmp_path / "root"
    (tmp_path / "secret").write_text("secret")
    work = WORK.format(title="{}", description="", tags="", language="en")
    outside = f'<!DOCTYPE svg [<!ENTITY e SYSTEM "{tmp_path.as_uri()}/secret">]>'
    quadratic = f'<!DOCTYPE svg [<!ENTITY e "{"a" * 100_000}">]>'
    add(root, "bomb", svg=BOMB + "]>" + work.format("&a12;"))
    add(root, "quadratic", svg=quadratic + work.format("&e;" * 10_000))
    add(root, "outside", svg=outside + work.format("&e;"))
    add(root, "plain", svg='<!DOCTYPE svg [<!ENTITY e "hat">]>' + work.format("&e;"))
    rows, counts = write(tmp_path)
    assert [row["alt_text"] for row in rows] == ["hat"]
    assert counts["broken_svg"] == 3


def test_shards_are_cut_in_order_and_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(clipart, "PICTURES_A_SHARD", 2)
    for name in "cabed":
        add(tmp_path / "root", name, title=name)
    rows, counts = write(tmp_path)
    assert "".join(row["alt_text"] for row in rows) == "abcde"
    assert counts["shards"] == 3
    clipart.write_pairs(tmp_path / "again", tmp_path / "root", collections.Counter())
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_missing_packages_are_named_and_nothing_is_written(tmp_path, monkeypatch):
    out = tmp_path / "out"
    flags = ["clipart", f"--out={out}", f"--root={tmp_path / 'root'}"]
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(InputError, match="apt-get install openclipart-png"):
        clipart.main()
    assert not out.exists()
    add(tmp_path / "root", "silent")
    with pytest.raises(InputError, match=r"no drawing .* has a text"):
        clipart.main()
    assert not (out / "pairs").exists()


def test_the_command_writes_once(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    add(tmp_path / "root", "x", title="t")
    flags = ["clipart", f"--out={out}", f"--root={tmp_path / 'root'}"]
    monkeypatch.setattr(sys, "argv", flags)
    clipart.main()
    (tmp_path / "root" / "svg" / "x.svg").write_text("now broken")
    clipart.main()
    assert capsys.readouterr().out.count('"pairs": 1') == 2
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "pairs",
        "summary.json",
    ]
    (out / "summary.json").unlink()
    clipart.main()
    assert "the pairs are there, but no summary.json" in capsys.readouterr().out
