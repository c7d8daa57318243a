"""Measures tokenizers of published sizes: opening, memory, and microseconds per text.

    python -m benchmarks.token_times --folder DATA --texts 1024 --rounds 9

The vocabularies have the sizes of BERT's (30,522), CLIP's (49,408), Gemma's (256,000,
as SigLIP 2 has it) and T5's (32,000), and drawn words. The texts are sentences of 4 to
20 of these words. `encode` is the form in Python, `tf.data` the one of the training
input, a batch at a time. A new process opens each tokenizer; figures of time are
medians over the rounds.
"""

import argparse
import collections
import concurrent.futures
import itertools
import json
import mmap
import multiprocessing
import pathlib
import random
import statistics
import time
from collections.abc import Callable

from align_jax.input.clip_files import END, START
from align_jax.input.stored_tokenizer import special_token
from align_jax.input.tokenizer import open_tokenizer

LENGTH = 64
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"
SIZES = {"wordpiece": 30_522, "clip": 49_408, "gemma": 256_000, "unigram": 32_000}
FILES = {
    "wordpiece": "vocab.txt",
    "clip": "vocab.json",
    "gemma": "tokenizer.json",
    "unigram": "tokenizer.model",
}


def draw_words(count: int) -> list[str]:
    """Returns different words of 2 to 9 letters, frequent letters more often."""
    draw, weights = random.Random(0), [1 / (i + 2) for i in range(len(LETTERS))]
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(draw.choices(LETTERS, weights, k=draw.randint(2, 9)))] = None
    return [*words]


def spelled(words: list[str], end: str) -> dict[tuple[str, str], None]:
    """Returns the merges that make each word from its letters, left to right."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        letters = [*word[:-1], word[-1] + end]
        for i in range(1, len(letters)):
            merges["".join(letters[:i]), letters[i]] = None
    return merges


def write_wordpiece(folder: pathlib.Path, size: int, words: list[str]) -> None:
    """Writes a vocab.txt of BERT's form."""
    pieces = [piece for letter in LETTERS for piece in (letter, f"##{letter}")]
    tokens = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces, *words])
    (folder / FILES["wordpiece"]).write_text("\n".join([*tokens][:size]) + "\n")


def write_clip(folder: pathlib.Path, size: int, words: list[str]) -> None:
    """Writes CLIP's vocab.json and merges.txt."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [
        *map(chr, printable),
        *(chr(256 + i) for i in range(256 - len(printable))),
    ]
    merges = [*spelled(words, "</w>")][: size - 514]
    tokens = dict.fromkeys([*letters, *(f"{c}</w>" for c in letters)])
    tokens |= dict.fromkeys("".join(pair) for pair in merges)
    ids = {token: i for i, token in enumerate([*tokens, START, END])}
    (folder / FILES["clip"]).write_text(json.dumps(ids))
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines)


def write_gemma(folder: pathlib.Path, size: int, words: list[str]) -> None:
    """Writes a tokenizer.json of Gemma's form."""
    space = "\u2581"
    merges = [*spelled([space + word for word in words], "")]
    merges += [*spelled(words, "")]
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    found = [*special, *(f"<0x{b:02X}>" for b in range(256)), space, *LETTERS]
    ids = {token: i for i, token in enumerate(found)}
    kept = []
    for left, right in merges:
        if len(ids) == size:
            break
        ids.setdefault(left + right, len(ids))
        kept.append((left, right))
    added = [special_token(token, i) for i, token in enumerate(special)]
    described = {
        "added_tokens": added,
        "normalizer": {
            "type": "Replace",
            "pattern": {"String": " "},
            "content": space,
        },
        "padding": {"pad_id": 0},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": kept,
        },
    }
    (folder / FILES["gemma"]).write_text(json.dumps(described, ensure_ascii=False))


def write_unigram(folder: pathlib.Path, size: int, words: list[str]) -> None:
    """Learns a .model of SentencePiece."""
    from data.corpus.sentence_pieces import learn_pieces

    counts = ((word, 1 + 10**6 // (i + 10)) for i, word in enumerate(words))
    (folder / FILES["unigram"]).write_bytes(learn_pieces(counts, size, "unigram"))


WRITERS: dict[str, Callable[[pathlib.Path, int, list[str]], None]] = {
    "wordpiece": write_wordpiece,
    "clip": write_clip,
    "gemma": write_gemma,
    "unigram": write_unigram,
}


def draw_texts(words: list[str], count: int) -> list[str]:
    """Returns sentences of 4 to 20 words; the first words are the frequent ones."""
    draw = random.Random(1)
    weights = [*itertools.accumulate(1 / (i + 10) for i in range(len(words)))]
    return [
        " ".join(draw.choices(words, cum_weights=weights, k=draw.randint(4, 20)))
        for _ in range(count)
    ]


def resident() -> int:
    """Returns the resident memory of this process in bytes."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def measure(path: str, texts: list[str], rounds: int) -> dict[str, float]:
    """Opens a tokenizer in a new process and measures it."""
    before = resident()
    start = time.perf_counter()
    tokenizer = open_tokenizer(path, LENGTH)
    opened = time.perf_counter() - start
    ids = tokenizer.encode(texts)
    memory = resident() - before
    found = {
        "tokens": tokenizer.size,
        "opened_s": opened,
        "memory_mb": memory / 1e6,
        "tokens_per_text": float((ids != tokenizer.pad_token).sum(1).mean()),
    }
    import tensorflow as tf

    data = tf.data.Dataset.from_tensors(texts).map(tokenizer)
    times = collections.defaultdict(list)
    for _ in range(rounds + 1):
        start = time.perf_counter()
        tokenizer.encode(texts)
        middle = time.perf_counter()
        next(iter(data))
        times["encode_us"].append(middle - start)
        times["tf_data_us"].append(time.perf_counter() - middle)
    for name, seconds in times.items():
        found[name] = statistics.median(seconds[1:]) / len(texts) * 1e6
    return found


def main() -> None:
    """Reads the flags, writes the vocabularies and prints a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    flags = parser.parse_args()
    words = draw_words(150_000)
    texts = draw_texts(words, flags.texts)
    for name, write in WRITERS.items():
        folder = flags.folder / name
        path = folder / FILES[name]
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write(folder, SIZES[name], words)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            found = pool.submit(measure, str(path), texts, flags.rounds).result()
        print(name, json.dumps({k: round(v, 3) for k, v in found.items()}), flush=True)


if __name__ == "__main__":
    main()
