import collections

import pytest

from data.sources.charsets import codec_of
from data.sources.html_pages import decode_page, read_page
from data.sources.image_addresses import list_candidates


@pytest.mark.parametrize(
    ("fields", "best"),
    [
        ({"src": "a", "srcset": "b 300w, c 600w"}, "c"),
        ({"src": "data:,x", "data-srcset": "a 2x, b"}, "a"),
        ({"src": "1.gif", "srcset": "1.gif 9x", "data-srcset": "a"}, "a"),
        ({"srcset": "data:image/png;base64,AA== 2x", "src": "a"}, "a"),
        ({"srcset": "http://h/a,b.jpg 10w,c 5w 3h"}, "http://h/a,b.jpg"),
        ({"srcset": "a bad, b", "src": "c"}, "a"),
        ({"srcset": " , ,", "src": " a "}, "a"),
        ({"srcset": None, "src": ""}, None),
    ],
)
def test_the_largest_candidate_is_chosen(fields, best):
    assert next(iter(list_candidates(fields)), None) == best


@pytest.mark.parametrize(
    ("part", "candidates"),
    [(",", 0), ("a,", 1), ("a ", 1), ("a (", 1), ("a, ", 300_000), ("(", 1), (" ", 0)],
)
def test_a_set_of_any_length_is_read(part, candidates):
    """In quadratic time, this would take many minutes."""
    assert len(list_candidates({"srcset": part * 300_000})) == candidates


@pytest.mark.parametrize(
    ("page", "address"),
    [
        ("<picture><source srcset='a 9w'><img src=b alt=t></picture>", "a"),
        ("<picture><source srcset=a></picture><img src=b alt=t>", "b"),
        ("<source srcset=a><img src=b alt=t>", "b"),
        ("<base target=_blank><base href=/s/><base href=/t/><img src=a alt=t>", "s/a"),
        ("<img src='x\\y\\a.png?q=\\' alt=t>", "x/y/a.png?q=\\"),
        ("<img src='x\n/a' alt=t>", "x/a"),
    ],
)
def test_the_address_is_a_browser_s(page, address):
    rows = list(read_page(page.encode(), "", "http://h/", None, collections.Counter()))
    assert rows == [(None, f"http://h/{address}", "t")]


def test_an_embedded_picture_needs_no_padding_and_an_empty_address_is_counted():
    drops = collections.Counter()
    page = b"<img src=data:;base64,iVBORw alt=a><img src='' alt=b>"
    page += b"<img src=data:;base64,A alt=c>"
    rows = list(read_page(page, "", "http://h/", None, drops))
    assert rows == [(b"\x89PNG", None, "a"), None, None]
    assert drops == {"no address": 1, "data: url not read": 1}


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("x-sjis", "cp932", "赤い家"),
        ("windows-31j", "cp932", "①"),
        ("cp1251", "cp1251", "дом"),
        ("windows-949", "cp949", "붉은 집"),
        ("x-gbk", "gb18030", "红"),
        ("csbig5", "big5", "紅"),
        ("ibm866", "cp866", "дом"),
        ("x-mac-ukrainian", "mac-cyrillic", "дім"),
        ("iso8859-11", "cp874", "บ้าน"),
        ("l1", "cp1252", "“é”"),
        ("utf-16le", "utf-8", "é"),
    ],
)
def test_charsets_have_the_labels_of_the_standard(label, codec, text):
    page = f'<meta charset="{label}">{text}'.encode(codec)
    assert text in decode_page(page)


def test_all_labels_have_a_codec():
    from webencodings.labels import LABELS

    refused = {label for label in LABELS if codec_of(label) is None}
    assert {LABELS[label] for label in refused} == {"replacement"}
    for label in LABELS.keys() - refused:
        b"a".decode(codec_of(label), "replace")
