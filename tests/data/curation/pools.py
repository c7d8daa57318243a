"""Pools in DataComp's format, and its baselines a second time, in plain Python."""

import dataclasses
import operator
import pathlib
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WIDTH = 16  # of the embeddings
L14, B32 = "clip_l14_similarity_score", "clip_b32_similarity_score"

# Words and the first WordNet synset of each, by the files of `write_wordnet`.
SYNSETS = {
    "dog": 2084071,
    "dogs": 2084071,
    "Dogs": 2084071,
    "dog,": None,
    "geese": 1855672,
    "men": 10287213,
    "boxes": 2883344,
    "running": 1926311,  # a verb
    "better": 1123148,  # irregular, an adjective
    "quickly": 85811,
    "the": None,
    "zzz": None,
    "\u3000": None,
}
ENTITIES = {2084071, 1926311, 10287213}  # an entity's number may be a verb's

INDEX = {
    "noun": """\
  1 This software and database is
dog n 3 2 @ ~ 3 1 02084071 10114209 09886220
goose n 1 1 @ 1 0 01855672
man n 2 0 2 2 10287213 00000001
box n 1 1 @ 1 1 02883344
""",
    "verb": """\
run v 2 3 @ ~ $ 2 2 01926311 02075049
dog v 1 1 @ 1 0 02001858
""",
    "adj": "good a 1 1 ! 1 1 01123148\n",
    "adv": "quickly r 1 1 ! 1 1 00085811\n",
}
EXCEPTIONS = {
    "noun": "geese goose\n",
    "verb": "running run\n",
    "adj": "better good well\n",
    "adv": "",
}

TEXTS = [
    "",
    " ",
    "dog",
    "a dog",
    "a\ndog",
    "a\n",
    "\n\n\n\n\n\n",
    "12345",
    "123456",
    "a b c",
    "a b cd",
    "ab cd e",
    "a\u3000b\u00a0cde",
    "\u3000\u3000\u3000\u3000\u3000\u3000",
    "tab\tand\x0bvertical\x0cfeed",
    "nul\0inside a text",
    "the\r\ndogs",
    "🐕🐕🐕 🐕🐕 🐕",
    "<b>the dog, runs</b>",
]


def write_wordnet(folder: pathlib.Path) -> str:
    folder.mkdir()
    for part, text in INDEX.items():
        (folder / f"index.{part}").write_text(text)
        (folder / f"{part}.exc").write_text(EXCEPTIONS[part])
    return str(folder)


@dataclasses.dataclass(frozen=True)
class Pool:
    """A pool as Python sees it: a dict a row, in order, with "l14_img"."""

    folder: pathlib.Path
    rows: list[dict]
    centroids: list[list[float]]
    target: list[list[float]]


def make_pool(root: pathlib.Path, rows: int, tables: int = 3, seed: int = 0) -> Pool:
    """Writes a pool, centroids and a target set, and returns them as Python's values.

    The last table is compressed and in another type of scores.
    """
    drawn = random.Random(seed)
    numbers = np.random.default_rng(seed)
    folder = root / "pool"
    folder.mkdir()
    table_of = [drawn.randrange(tables) for _ in range(rows)]
    found = []
    for table in range(tables):
        here = [draw_row(drawn, n) for n in range(rows) if table_of[n] == table]
        vectors = numbers.normal(size=(len(here), WIDTH))
        vectors *= numbers.uniform(0.5, 2, (len(here), 1))
        vectors = vectors.astype(np.float16)
        columns = {name: [row[name] for row in here] for name in here[0]}
        path = folder / f"{table:08}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=997)
        save = np.savez_compressed if table == tables - 1 else np.savez
        save(path.with_suffix(".npz"), b32_img=vectors[:, :8], l14_img=vectors)
        for row, vector in zip(here, vectors.tolist(), strict=True):
            found.append({**row, "l14_img": vector})
    centroids = numbers.normal(size=(12, WIDTH)).astype(np.float32)
    target = numbers.normal(size=(9, WIDTH)).astype(np.float32)
    np.save(root / "centroids.npy", centroids)
    np.save(root / "target.npy", target)
    return Pool(folder, found, centroids.tolist(), target.tolist())


def draw_row(drawn: random.Random, number: int) -> dict:
    words = drawn.choices([*SYNSETS, "red", "<i>sale</i>", "2019", "wallpaper"], k=7)
    text = " ".join(words[: drawn.randrange(1, 8)])
    if number < len(TEXTS) or drawn.random() < 0.2:
        text = TEXTS[number % len(TEXTS)]
    side = drawn.choice([0, 1, 199, 200, 201, 400, 600, 601, 1024])
    return {
        "uid": f"{drawn.getrandbits(128):032x}",
        "url": f"https://example.org/{number}.jpg",
        "text": text,
        "original_width": side,
        "original_height": drawn.choice([side, side * 3, side * 3 + 1, 200, 600]),
        # Rounded, so that scores are equal.
        B32: round(drawn.gauss(0.25, 0.04), 2),
        L14: round(drawn.gauss(0.22, 0.05), 2 + number % 2),
        "face_bboxes": [[0.1, 0.2, 0.3, 0.4]] * (number % 2),
        "sha256": f"{drawn.getrandbits(256):064x}",
        "language": drawn.choice(["en", "en", "de", "zh", ""]),
    }


def basic_filter(row: dict) -> bool:
    shorter = min(row["original_width"], row["original_height"])
    longer = max(row["original_width"], row["original_height"])
    return (
        row["language"] == "en"
        and len(row["text"].split()) > 2
        and len(row["text"]) > 5
        and shorter >= 200
        and longer / shorter <= 3.0
    )


def clip_score(rows: list[dict], column: str, fraction: float) -> list[bool]:
    scores = sorted((row[column] for row in rows), reverse=True)
    threshold = scores[int(len(rows) * fraction)]
    return [row[column] >= threshold for row in rows]


def text_based(row: dict) -> bool:
    found = (SYNSETS.get(word) for word in row["text"].split())
    return row["language"] == "en" and any(synset in ENTITIES for synset in found)


def tokens_of(text: str) -> list[str]:
    """Splits a text character by character, as fastText reads it."""
    tokens, word = [], ""
    for character in text + " ":
        if character in " \n\r\t\v\f\0":
            tokens += [word] * bool(word) + ["</s>"] * (character == "\n")
            word = ""
        else:
            word += character
    return tokens


def nearest(vector: list[float], centroids: list[list[float]]) -> int:
    products = [sum(map(operator.mul, vector, centroid)) for centroid in centroids]
    return products.index(max(products))


def image_based(pool: Pool, row: dict) -> bool:
    targets = {nearest(vector, pool.centroids) for vector in pool.target}
    return (
        row["language"] == "en"
        and len(tokens_of(row["text"])) > 1
        and len(row["text"]) > 5
        and nearest(row["l14_img"], pool.centroids) in targets
    )
