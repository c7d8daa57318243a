import json

import numpy as np
import pytest

from align_jax.errors import InputError
from align_jax.evaluation.runner import make_evaluators
from align_jax.evaluation.scores import CUTS
from align_jax.input.language_set import LANGUAGES
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
