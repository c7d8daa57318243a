import collections
import io

import numpy as np
import pytest
from PIL import Image

from data.corpus.ingest import normalise
from data.corpus.rules import RuleBounds
from data.samples import emoji_drawings
from data.samples.emoji_drawings import (
    MARGIN,
    SIDE,
    STYLES,
    alt_texts,
    draw,
    list_concepts,
    trained_styles,
)
from data.samples.quickstart_splits import evaluation_drawings


@pytest.fixture(scope="module")
def concepts():
    return list_concepts()


def test_both_packages_draw_about_1400_single_concepts(concepts):
    singles = [concept for concept in concepts if concept.single]
    assert 1350 <= len(singles) <= 1500
    assert len({c.english for c in singles}) == len(singles)
    assert len(concepts) > 2 * len(singles)
    assert len({c.code for c in concepts}) == len(concepts)


def test_names_in_fourteen_languages_and_noise_that_rules_can_drop(concepts):
    cat = next(concept for concept in concepts if concept.code == "1F408")
    texts = alt_texts(cat, "twemoji")
    assert {("en", "cat"), ("en", "cat2"), ("de", "katze")} <= set(texts)
    assert len({language for language, _ in texts}) == 14
    assert ("en", emoji_drawings.BOILERPLATE["twemoji"]) in texts
    assert max(len(text.split()) for _, text in texts) < 100


def test_every_stuffed_text_is_too_long_and_no_name_is(concepts):
    for concept in (concept for concept in concepts if concept.single):
        *names, _, stuffed = alt_texts(concept, "openmoji")
        assert len(normalise(stuffed[1], 1000).split()) > RuleBounds().max_unigrams
        assert max(len(normalise(text, 1000).split()) for _, text in names) <= 20


def test_the_split_is_the_stated_one(concepts):
    singles = [concept for concept in concepts if concept.single]
    styles = collections.Counter(len(trained_styles(0, c)) for c in singles)
    assert 0.12 < styles[0] / len(singles) < 0.18
    assert 0.15 < styles[1] / (styles[1] + styles[2]) < 0.25
    assert all(not trained_styles(0, c) for c in concepts if not c.single)
    other_seed = [trained_styles(1, c) for c in singles]
    assert other_seed != [trained_styles(0, c) for c in singles]


def test_no_queried_drawing_is_trained_on(concepts):
    splits = evaluation_drawings(concepts, seed=0)
    trained = {(c.code, style) for c in concepts for style in trained_styles(0, c)}
    for drawings in splits.values():
        for concept, style, query in drawings:
            assert query != ((concept.code, style) in trained)
    seen = {concept.code for concept in concepts if trained_styles(0, concept)}
    assert sorted(c.code for c, _, _ in splits["unseen_drawing"]) == sorted(seen)
    unseen = collections.Counter(c.code for c, _, _ in splits["unseen_concept"])
    assert set(unseen.values()) == {2}
    assert not seen & set(unseen)


def test_drawings_fill_pngs_of_one_size_in_both_styles(concepts):
    widths = {}
    for style in STYLES:
        drawn = [draw(c.drawings[style]) for c in concepts[100:400:10]]
        opened = [Image.open(io.BytesIO(png)) for png in drawn]
        assert {(p.format, p.size) for p in opened} == {("PNG", (SIDE, SIDE))}
        boxes = [p.convert("RGBA").getbbox() for p in opened]
        extents = [max(b[2] - b[0], b[3] - b[1]) for b in boxes]
        widths[style] = np.median(extents)
    assert abs(widths["twemoji"] - widths["openmoji"]) <= 4
    assert widths["openmoji"] >= SIDE - 2 * MARGIN - 1
