"""Zipf-like rows, generated from a seed, for `benchmarks.corpus`."""

import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.corpus import concepts

CHUNK = 250_000  # rows per file
WORDS = 200_000
LONGEST = 28  # unigrams
UNIT = 2.0**-53


def mix(numbers: np.ndarray) -> np.ndarray:
    """Hashes integers of any type to random-looking uint64."""
    return concepts.mix(numbers.astype(np.uint64))


def rank(uniform: np.ndarray, n: int) -> np.ndarray:
    """Turns uniform numbers into ranks 0 to n - 1, rank r as often as 1 / (r + 1)."""
    return (np.exp(uniform * np.log(n + 1)) - 1).astype(np.int64)


def spell_words() -> pa.Array:
    """Returns WORDS different words; frequent words are short."""
    syllables = [c + v for c in "bcdfghklmnprstvz" for v in "aeiou"]
    words = []
    for number in range(WORDS):
        word = ""
        while number >= 0:
            word += syllables[number % 80]
            number = number // 80 - 1
        words.append(word)
    return pa.array(words)


def spell_ids(numbers: np.ndarray) -> pa.Array:
    """Returns 32 hex digits for each number."""
    halves = np.stack([mix(numbers), mix(numbers + (1 << 40))], 1)  # (N, 2)
    content = halves.view(np.uint8)  # (N, 16)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.stack([digits[content >> 4], digits[content & 15]], 2)  # (N, 16, 2)
    offsets = np.arange(0, 32 * len(numbers) + 1, 32, dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text.tobytes())]
    return pa.Array.from_buffers(pa.string(), len(numbers), buffers)


def draw_words(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draws words (n, LONGEST), mostly decided by the word before."""
    words = np.empty((n, LONGEST), np.int64)
    words[:, 0] = rank(rng.random(n), WORDS)
    for i in range(1, LONGEST):
        state = mix(words[:, i - 1] * 64 + rank(rng.random(n), 64))
        usual = rank((state >> np.uint64(11)) * UNIT, WORDS)
        fresh = rank(rng.random(n), WORDS)
        words[:, i] = np.where(rng.random(n) < 0.85, usual, fresh)
    return words


def draw_texts(
    rng: np.random.Generator, n: int, even: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draws words (n, LONGEST) and lengths (n,); `even` is that of `generate`."""
    if even:
        words = rng.integers(WORDS, size=(n, LONGEST))
    else:
        words = draw_words(rng, n)
    lengths = np.minimum(rng.geometric(0.3, n) + rng.poisson(5, n), LONGEST)
    short = rng.random(n) < 0.1
    return words, np.where(short, rng.integers(1, 4, n), lengths)


def draw_pairs(
    seed: int,
    chunk: int,
    n: int,
    images: int,
    *,
    pool: tuple,
    spelled: pa.Array,
    even: bool,
) -> pa.Table:
    """Draws the pairs of one file; 30 % share a text of the pool, 3 % are repeated."""
    rng = np.random.default_rng((seed, 2, chunk))
    words, lengths = draw_texts(rng, n, even)
    shared = rng.random(n) < 0.3
    pick = rank(rng.random(shared.sum()), len(pool[1]))
    words[shared], lengths[shared] = pool[0][pick], pool[1][pick]
    popular = rank(rng.random(n), images)
    image = np.where(rng.random(n) < 0.1, popular, rng.integers(0, images, n))
    language = rng.choice(3, n, p=[0.9, 0.07, 0.03])
    again = rng.random(n) < 0.03
    source = np.maximum(np.arange(n) - rng.integers(1, 1000, n), 0)
    for column in (words, lengths, image, language):
        column[again] = column[source[again]]
    mask = np.arange(LONGEST) < lengths[:, None]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, spelled.take(pa.array(words[mask])))
    text = pc.binary_join(lists, " ")
    power = mix(np.arange(LONGEST)) | np.uint64(1)
    content = (np.where(mask, mix(words), np.uint64(0)) * power).sum(1)
    ids = spell_ids(image)
    capital = pa.array(rng.random(n) < 0.5)
    return pa.table(
        {
            "image_id": ids,
            "url": pc.binary_join_element_wise("https://example.com/", ids, ""),
            "alt_text": pc.if_else(
                capital, pc.utf8_capitalize(text), pc.utf8_upper(text)
            ),
            "text": text,
            "language": pa.array(["en", "de", None]).take(pa.array(language)),
            "key": mix(mix(image) ^ content).view(np.int64),
        }
    )


def draw_pictures(seed: int, chunk: int, numbers: np.ndarray) -> pa.Table:
    """Draws the pictures of one file; 2 % are missing, 1 % are broken."""
    rng = np.random.default_rng((seed, 3, chunk))
    numbers = numbers[rng.random(len(numbers)) > 0.02]
    n = len(numbers)
    width = np.exp(rng.normal(6.3, 0.5, n)).astype(np.int32)
    height = (width * np.exp(rng.normal(0, 0.4, n))).astype(np.int32)
    broken = rng.random(n) < 0.01
    width[broken] = height[broken] = 0
    missing = pa.scalar(None, pa.string())
    return pa.table(
        {
            "image_id": spell_ids(numbers),
            "shard": np.full(n, chunk, np.int32),
            "bytes": width.astype(np.int64) * height // 8,
            "width": width,
            "height": height,
            "format": ["JPEG"] * n,
            "phash": mix(numbers).view(np.int64),
            "error": pc.if_else(pa.array(broken), "broken", missing),
        }
    )


def generate(folder: pathlib.Path, pairs: int, seed: int, even: bool = False) -> None:
    """Writes folder/pairs and folder/images, unless the folder exists.

    If `even`, all words are equally frequent and independent. Then most pairs of words
    occur once.
    """
    if folder.exists():
        return
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for name in ("pairs", "images"):
        (temporary / name).mkdir(parents=True)
    spelled, images = spell_words(), max(1, pairs * 6 // 10)
    pool = draw_texts(np.random.default_rng((seed, 1)), max(10, pairs // 20), even)
    for chunk, start in enumerate(range(0, pairs, CHUNK)):
        n = min(CHUNK, pairs - start)
        table = draw_pairs(
            seed, chunk, n, images, pool=pool, spelled=spelled, even=even
        )
        pq.write_table(table, temporary / "pairs" / f"{chunk:05}.parquet")
    for chunk, start in enumerate(range(0, images, CHUNK)):
        numbers = np.arange(start, min(start + CHUNK, images))
        table = draw_pictures(seed, chunk, numbers)
        pq.write_table(table, temporary / "images" / f"{chunk:05}.parquet")
    temporary.rename(folder)
