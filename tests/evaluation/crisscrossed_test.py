"""Crisscrossed Captions in the real files' format, with embeddings set by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from align_jax.devices.mesh import make_mesh
from align_jax.errors import InputError
from align_jax.evaluation.evaluators.crisscrossed import (
    Crisscrossed,
    CrisscrossedConfig,
)
from tests import tiny

# Four pictures; the last one has only one caption.
FILES = [f"COCO_val2014_{i:012}.jpg" for i in (42, 7, 9, 11)]
CAPTION_IDS = [[770, 771], [33, 34], [50, 51], [60]]
ANGLES = [0.0, 0.5, 1.0, 1.5]  # angles of the pictures' embeddings
AFTER = [0.05, 0.2]  # angles from a picture to its captions


def caption(number):
    return f"COCO_val2014:sentid:{number}"


def at(angles):
    return np.float32([[np.cos(angle), np.sin(angle)] for angle in angles])


class AngleEncoder:
    mesh = make_mesh()

    def encode_images(self, pictures):
        shown = [tiny.draw(name, 110) for name in tiny.NAMES]
        return at([ANGLES[shown.index(picture)] for picture in pictures])

    def encode_texts(self, texts):
        return at([float(text) for text in texts])


def write_captioned(folder, pictures):
    """Writes (picture, file name, {caption id: text}) of each picture as MSCOCO."""
    rows = [
        {
            "image": tiny._bytes(picture),
            "texts": tiny.text(*captions.values()),
            "caption_ids": tiny.text(*map(str, captions)),
            "file_name": tiny.text(name),
        }
        for picture, name, captions in pictures
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "texts": tfds.features.Sequence(tfds.features.Text()),
        "caption_ids": tfds.features.Sequence(tfds.features.Text()),
        "file_name": tfds.features.Text(),
    }
    return tiny.write_dataset(folder / "coco", "test", [rows], features)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    pictures = [
        (
            tiny.draw(tiny.NAMES[i], 110),
            name,
            {c: str(ANGLES[i] + a) for c, a in zip(ids, AFTER, strict=False)},
        )
        for i, (name, ids) in enumerate(zip(FILES, CAPTION_IDS, strict=True))
    ]
    return write_captioned(tmp_path_factory.mktemp("coco"), pictures)


# Pairs with similar embeddings have higher ratings, except in the last line of each.
STS = [
    (caption(770), caption(771), 4.5, "c2c_cocaption"),
    (caption(33), caption(771), 3.0, "c2c_isim"),
    (caption(50), caption(34), 2.9, "c2c_isim"),
    (caption(51), caption(770), 1.0, "c2c_isim"),
    (caption(60), caption(770), 5.0, "c2c_isim"),
]
SIS = [
    (FILES[0], FILES[1], 2.5, "i2i_csim"),
    (FILES[1], FILES[0], 2.5, "i2i_csim"),  # the same pair in the other order
    (FILES[1], FILES[2], 2.4, "i2i_csim"),
    (FILES[2], FILES[3], 3.5, "i2i_csim"),
    (FILES[3], FILES[0], 0.5, "i2i_csim"),
]
SITS = [
    (caption(770), FILES[0], 5.0, "c2i_original"),
    (caption(771), FILES[0], 2.0, "c2i_original"),  # the original picture is not right
    (caption(33), FILES[1], 4.0, "c2i_original"),
    (caption(34), FILES[2], 3.0, "c2i_intrasim"),
    (caption(50), FILES[3], 1.0, "c2i_intrasim"),
    (caption(60), FILES[0], 4.0, "c2i_intrasim"),
]


def write_ratings(folder, **changed):
    columns = {
        "sts": ("caption1", "caption2", STS),
        "sis": ("image1", "image2", SIS),
        "sits": ("caption", "image", SITS),
    }
    for kind, (first, second, rows) in columns.items():
        lines = [(first, second, "agg_score", "sampling_method")]
        lines += changed.get(kind, rows)
        text = "".join(",".join(map(str, line)) + "\n" for line in lines)
        (folder / f"{kind}_test.csv").write_text(text)
    return str(folder)


def read(directory, ratings, **changes):
    fields = {"expected_ratings": (), "estimates": 20} | changes
    return Crisscrossed(CrisscrossedConfig(directory, ratings, **fields))


def test_recalls_and_correlations_by_hand(directory, tmp_path):
    evaluator = read(directory, write_ratings(tmp_path))
    scores = dict(evaluator.run(AngleEncoder()))
    # Four captions have a right picture. 770 and 33 find it first. 34 (angle 0.7) is
    # nearer to the picture at 0.5 than to its right one at 1.0. 60 (1.55) is nearer to
    # all others than to its right one at 0.0.
    assert scores["t2i_queries"] == 4
    assert scores["t2i_recall@1"] == 0.5
    # The picture at 0.0 finds 770 (0.05) first, and that at 0.5 finds 33 (0.55) first.
    # The one at 1.0 is nearer to 50 and 51 than to 34. The last has no right caption.
    assert scores["i2t_queries"] == 3
    assert scores["i2t_recall@1"] == pytest.approx(2 / 3)
    assert scores["i2t_recall@5"] == 1.0
    # 770-771, 33-771 and 60-770 are right. 770 and 771 find each other first. 33 (0.55)
    # is nearer to 34 than to 771, and 60 is nearer to all others than to 770.
    assert scores["t2t_queries"] == 4
    assert scores["t2t_recall@1"] == 0.5
    assert scores["t2t_recall@5"] == 0.75
    # Pictures 0-1 and 2-3 are right. For 1, pictures 0 and 2 tie; for 2, 1 and 3 do.
    assert scores["i2i_queries"] == 4
    assert scores["i2i_recall@1"] == 0.5
    assert scores["i2i_recall@5"] == 1.0
    # The queries of SITS are the pictures.
    for kind, queries in (("sts", 5), ("sis", 4), ("sits", 4)):
        assert scores[f"{kind}_queries"] == queries
        assert -1 <= scores[f"{kind}_spearman"] <= 1
        assert scores[f"{kind}_spearman_std"] > 0


def spearman(a, b):
    """Returns the correlation of ranks; equal values have the mean of their ranks."""
    ranks = [(x[:, None] > x).sum(1) + (x[:, None] == x).sum(1) / 2 for x in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


def bootstrap(queries, ratings, cosines, estimates, seed):
    """Returns mean and deviation of the protocol in float64, query by query."""
    random, found = np.random.default_rng(seed), []
    items = [np.flatnonzero(queries == query) for query in sorted({*queries.tolist()})]
    for _ in range(estimates):
        half = [items[i] for i in random.permutation(len(items))[: len(items) // 2]]
        picks = random.integers([len(rated) for rated in half])
        rows = [rated[pick] for rated, pick in zip(half, picks, strict=True)]
        found.append(spearman(ratings[rows], cosines[rows]))
    return np.mean(found), np.std(found)


def test_correlations_are_the_protocol_s_in_float64(tmp_path):
    count, size, random = 30, 8, np.random.default_rng(0)
    names = [f"COCO_val2014_{i:012}.jpg" for i in range(count)]
    picture = tiny.draw(tiny.NAMES[0], 110)
    captioned = [
        (picture, name, {2 * i: f"text {i}", 2 * i + 1: f"another {i}"})
        for i, name in enumerate(names)
    ]
    directory = write_captioned(tmp_path, captioned)
    vectors = random.normal(size=(3 * count, size))
    vectors = np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    images, texts = np.split(vectors, [count])
    encoder = SimpleNamespace(
        mesh=make_mesh(),
        encode_images=lambda pictures: images,
        encode_texts=lambda found: texts,
    )
    sides = {
        "sts": ([caption(i) for i in range(2 * count)],) * 2,
        "sis": (names, names),
        "sits": ([caption(i) for i in range(2 * count)], names),
    }
    known = {"sts": (texts, texts), "sis": (images, images), "sits": (texts, images)}
    rated, files = {}, {}
    for kind, (first, second) in sides.items():
        pairs = random.integers([len(first), len(second)], size=(150, 2))
        a, b = (np.float64(x) for x in known[kind])
        cosines = np.einsum("pd,pd->p", a[pairs[:, 0]], b[pairs[:, 1]])
        ratings = np.round(2.5 + 2 * cosines + random.normal(size=150) / 2, 1)
        rated[kind] = pairs, ratings, cosines
        files[kind] = [
            (first[i], second[j], rating, "")
            for (i, j), rating in zip(pairs.tolist(), ratings, strict=True)
        ]
    evaluator = read(directory, write_ratings(tmp_path, **files), estimates=50, seed=3)
    scores = dict(evaluator.run(encoder))
    for kind, side in (("sts", 0), ("sis", 0), ("sits", 1)):
        pairs, ratings, cosines = rated[kind]
        wanted = bootstrap(pairs[:, side], ratings, cosines, 50, 3)
        found = scores[f"{kind}_spearman"], scores[f"{kind}_spearman_std"]
        assert found == pytest.approx(wanted, abs=1e-6)
        assert scores[f"{kind}_queries"] == len({*pairs[:, side].tolist()})
    pairs, ratings, cosines = rated["sits"]
    by_caption = bootstrap(pairs[:, 0], ratings, cosines, 50, 3)
    assert scores["sits_spearman_std"] > by_caption[1] + 0.01


def test_a_reversed_pair_counts_once(directory, tmp_path):
    evaluator = read(directory, write_ratings(tmp_path))
    assert evaluator.right("sis").tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
    assert evaluator.right("sits").tolist() == [[0, 0], [2, 1], [3, 2], [6, 0]]


def test_examples_of_alike_pictures_leave_out_the_query(directory, tmp_path):
    evaluator = read(directory, write_ratings(tmp_path))
    shown = evaluator.examples(AngleEncoder())
    assert [len(list(examples)) for examples in shown.values()][:3] == [3, 4, 4]
    alike = [*evaluator.examples(AngleEncoder()).values()][3]
    for example in alike:
        others = [answer.item.picture for answer in example.answers[:3]]
        assert example.query.picture not in others
        assert len(set(others)) == 3
        assert example.right.picture in others


def test_other_counts_names_and_files_are_refused(directory, tmp_path):
    ratings = write_ratings(tmp_path)
    with pytest.raises(InputError, match=r"sts_test\.csv has 5 ratings; wanted 44045"):
        Crisscrossed(CrisscrossedConfig(directory, ratings))
    strange = [(caption(770), "COCO_val2014_000000000001.jpg", 1.0, "c2i_original")]
    write_ratings(tmp_path, sits=strange)
    with pytest.raises(InputError, match=r"sits_test.csv, line 2: .* has no image"):
        read(directory, ratings)
    (tmp_path / "sits_test.csv").write_text("caption,image\n")
    with pytest.raises(InputError, match=r"lacks the columns \['agg_score'\]"):
        read(directory, ratings)
    (tmp_path / "sits_test.csv").unlink()
    with pytest.raises(
        InputError, match=r"no ratings at .*sits_test\.csv; clone https"
    ):
        read(directory, ratings)
