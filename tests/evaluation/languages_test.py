import json

import numpy as np
import pytest

from align_jax.errors import InputError
from align_jax.evaluation.runner import make_evaluators
from align_jax.evaluation.scores import CUTS
from align_jax.input.language_set import LANGUAGES, XTD, read_xtd
from configs import zero_shot
from tests import tiny
from tests.fixed_encoder import FixedEncoder, perfect

GERMAN = {"red": "rot", "green": "grün", "blue": "blau"}


def write_crossmodal(root, count=12):
    """Writes twelve pictures with two captions in English and one in German."""
    (root / "images").mkdir(parents=True)
    lines = []
    for number, name in enumerate(tiny.NAMES[:count]):
        colour, side = name.split()
        (root / "images" / f"{number:04}.jpg").write_bytes(tiny.draw(name, 110))
        captions = {"en": [name, f"the {name}"], "de": [f"{side} {GERMAN[colour]}"]}
        entry = {"image/key": f"{number:04}", "image/locale": "en"}
        entry |= {code: {"caption": texts} for code, texts in captions.items()}
        lines.append(json.dumps(entry, ensure_ascii=False))
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return {"directory": str(root), "languages": ["en", "de"]}


def write_xtd(root, split=True):
    """Writes the twelve pictures with a caption in English, German and Japanese."""
    names = []
    for number, name in enumerate(tiny.NAMES):
        part = ("train2014", "val2014")[number % 3 == 0]
        names.append(f"COCO_{part}_{number:012}.jpg")
        place = root / "coco" / (part if split else "") / names[-1]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(tiny.draw(name, 110))
    german = [
        name.replace(word := name.split()[0], GERMAN[word]) for name in tiny.NAMES
    ]
    for file, lines in (
        ("XTD10/test_image_names.txt", names),
        ("XTD10/test_1kcaptions_en.txt", tiny.NAMES),
        ("MIC/test_1kcaptions_de.txt", german),
        ("STAIR/test_1kcaptions_jp.txt", german),
    ):
        path = root / "set" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        # Some of the published files have these line ends, and none at the end.
        path.write_bytes(("\r\n" if "XTD" in file else "\n").join(lines).encode())
    return {
        "directory": str(root / "set"),
        "format": "xtd",
        "pictures": str(root / "coco"),
        "languages": ["en", "de", "jp"],
    }


def make(**fields):
    return make_evaluators({"set": {"kind": "languages", **fields}})["set"]


def test_recalls_are_by_language_and_their_means(tmp_path):
    fields = write_crossmodal(tmp_path)
    encoder = FixedEncoder(perfect, perfect)  # it knows no German colour
    found = dict(make(**fields, expected_images=12).run(encoder))
    # A German text is as close to the pictures of all three colours.
    assert found["en_i2t_recall@1"] == found["en_t2i_recall@1"] == 1
    assert found["de_i2t_recall@1"] == found["de_t2i_recall@1"] == 0
    assert found["de_t2i_recall@5"] == 1
    for name in ("i2t", "t2i"):
        assert found[f"{name}_recall@1"] == 0.5
        assert found[f"{name}_chance@1"] == pytest.approx(1 / 12)
        assert found[f"{name}_queries"] == found[f"en_{name}_queries"] == 12
    ways = [f"{code}_{way}" for code in ("en", "de") for way in ("i2t", "t2i")]
    recalls = [f"{way}_recall@{k}" for way in ways for k in CUTS]
    assert found["mean_recall"] == pytest.approx(np.mean([found[r] for r in recalls]))
    assert next(iter(found)) == "mean_recall"
    found = dict(make(**fields, texts_per_image=0).run(encoder))
    assert found["en_t2i_queries"] == 24
    assert found["en_i2t_recall@1"] == 1
    assert found["en_i2t_queries"] == found["de_t2i_queries"] == 12


def test_the_languages_are_crossmodal_3600_s():
    assert len(LANGUAGES) == len({*LANGUAGES}) == 36
    assert {"en", "fil", "quz", "zh"} <= {*LANGUAGES}


def test_other_counts_languages_and_damage_are_refused(tmp_path):
    fields = write_crossmodal(tmp_path)
    with pytest.raises(InputError, match=r"has 12 pictures; wanted 3,600"):
        make(**fields, expected_images=3600)
    with pytest.raises(
        InputError, match=r"line 1 of .*captions.jsonl is broken: KeyErr"
    ):
        make(directory=str(tmp_path))  # all 36 languages
    for languages in ([], ["en", "en"]):
        with pytest.raises(InputError, match="wanted one or more, each once"):
            make(directory=str(tmp_path), languages=languages)
    (tmp_path / "images" / "0003.jpg").unlink()
    with pytest.raises(
        InputError, match=r"lacks 1 of 12 pictures, among them 0003.jpg"
    ):
        make(**fields)
    (tmp_path / "images" / "0003.jpg").write_bytes(b"x")
    path = tmp_path / "captions.jsonl"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\n")
    make(**fields, expected_images=12)  # empty last lines are no pictures
    lines = path.read_text().splitlines()
    entry = json.loads(lines[1])
    for broken, message in (
        (lines[1][:-9], "JSONDecodeError"),
        (json.dumps(entry | {"de": {"caption": []}}), "no caption in 'de'"),
        (json.dumps(entry | {"de": {"caption": "rot"}}), "no caption in 'de'"),
        (json.dumps(entry | {"de": {"caption": [3]}}), "is 3; wanted a text"),
        ("[]", "TypeError"),
        ("[" * 100_000, "RecursionError"),
    ):
        path.write_text("\n".join([lines[0], broken, *lines[2:]]))
        with pytest.raises(InputError, match=rf"line 2 of .*captions.jsonl.*{message}"):
            make(**fields)


@pytest.mark.parametrize("split", [True, False])
def test_xtd_is_read_in_place(tmp_path, split):
    fields = write_xtd(tmp_path, split)
    encoder = FixedEncoder(perfect, perfect)
    found = dict(make(**fields, expected_images=12).run(encoder))
    assert found["en_t2i_recall@1"] == found["en_i2t_recall@1"] == 1
    for language in ("de", "jp"):
        # The side alone: the pictures of the three colours tie, and so do the captions.
        assert found[f"{language}_t2i_recall@1"] == 0
        assert found[f"{language}_t2i_recall@5"] == 1
        assert found[f"{language}_t2i_queries"] == 12
    assert found["t2i_recall@1"] == found["i2t_recall@1"] == pytest.approx(1 / 3)
    assert found["t2i_chance@1"] == pytest.approx(1 / 12)


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    fields = write_xtd(tmp_path)
    languages = fields["languages"]
    before = read_xtd(fields["directory"], fields["pictures"], languages)
    for path in (tmp_path / "set").rglob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_xtd(fields["directory"], fields["pictures"], languages) == before


def test_the_languages_of_xtd_are_the_published_ones():
    assert len(XTD) == 11
    configured = zero_shot.get_config("xtd10").evaluators.xtd10
    assert {*configured.languages} == {*XTD}


def test_other_sets_of_xtd_are_refused(tmp_path):
    fields = write_xtd(tmp_path)
    with pytest.raises(InputError, match=r"has 12 pictures; wanted 1,000"):
        make(**fields, expected_images=1000)
    with pytest.raises(InputError, match=r"language is 'ja'; known: en, es, it, ko"):
        make(**fields | {"languages": ["en", "ja"]})
    with pytest.raises(InputError, match=r"test_1kcaptions_ko.txt is missing"):
        make(**fields | {"languages": ["en", "ko"]})
    for wrong in (
        fields | {"pictures": ""},
        fields | {"format": "crossmodal", "languages": ["en"]},
    ):
        with pytest.raises(InputError, match="wanted a folder for xtd, and none for"):
            make(**wrong)
    with pytest.raises(InputError, match=r"format is 'xdt'; did you mean 'xtd'"):
        make(**fields | {"format": "xdt"})
    path = tmp_path / "set" / "MIC" / "test_1kcaptions_de.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(InputError, match=r"captions_de.txt has 11 captions; wanted 12"):
        make(**fields)
    path.write_text("\n".join([lines[0], " ", *lines[2:]]))
    with pytest.raises(InputError, match=r"line 2 of .*captions_de.txt is empty"):
        make(**fields)
    path.write_text("\n".join(lines))
    (tmp_path / "coco" / "val2014" / "COCO_val2014_000000000003.jpg").unlink()
    with pytest.raises(InputError, match=r"val2014 lacks 1 of 4 pictures, among them"):
        make(**fields)
