"""CLIP's BPE and SentencePiece's two models as their papers state them, slow and plain.

Nothing here uses the libraries that compute them in the package.
"""

import collections
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

# Characters with Unicode's property White_Space.
WHITE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
SPACE = "\u2581"  # of SentencePiece


def byte_letters() -> dict[int, str]:
    """Returns a printable character for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {
        b: chr(256 + i) for i, b in enumerate(others)
    }


def clip_words(text: str) -> Iterator[str]:
    """Splits a cleaned text into CLIP's words; white space is in none of them."""

    def kind(c: str) -> str:
        return "" if c in WHITE else {"L": "L", "N": "N"}.get(category(c), "other")

    def category(c: str) -> str:
        return unicodedata.category(c)[0]

    start = 0
    while start < len(text):
        whole = [w for w in (*CLIP_SPECIAL, *CONTRACTIONS) if text.startswith(w, start)]
        if whole and whole[0] in CLIP_SPECIAL:
            # Plain text for us, which the library splits again as GPT-2 does.
            yield from (whole[0][:2], whole[0][2:-2], whole[0][-2:])
            start += len(whole[0])
            continue
        found = kind(text[start])
        end = start + 1
        if whole:
            end = start + len(whole[0])
        elif found in ("L", "other"):
            while end < len(text) and kind(text[end]) == found:
                end += 1
        if found:
            yield text[start:end]
        start = end


def clip_ids(
    text: str, vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]]
) -> list[int]:
    """Returns the ids of a text's words, without the special tokens.

    BPE (arXiv 1508.07909) on bytes, as CLIP's published simple_tokenizer.py has it.
    """
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    letters = byte_letters()
    text = unicodedata.normalize("NFC", text)
    text = re.sub(f"[{WHITE}]+", " ", text)
    text = "".join(c.lower() for c in text)
    ids = []
    for word in clip_words(text):
        symbols = [letters[b] for b in word.encode()]
        symbols[-1] += "</w>"
        while len(symbols) > 1:
            pairs = [*itertools.pairwise(symbols)]
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            merged, i = [], 0
            while i < len(symbols):
                both = (*symbols[i : i + 2],) == best
                merged.append("".join(symbols[i : i + 2]) if both else symbols[i])
                i += 2 if both else 1
            symbols = merged
        ids += [vocabulary[symbol] for symbol in symbols]
    return ids


def merges_of(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Returns the merges of SentencePiece's BPE, in the order of their scores."""
    return [
        (piece[:i], piece[i:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for i in range(1, len(piece))
        if piece[:i] in scores and piece[i:] in scores
    ]


def escape(text: str) -> str:
    """Returns a text with single spaces, one before it, as SentencePiece's U+2581."""
    text = re.sub(" +", " ", text).strip(" ")
    # The sign of a space, at the end, goes with the spaces.
    text = f" {text}".replace(" ", SPACE) if text else ""
    return text.rstrip(SPACE)


def unigram_split(text: str, scores: Mapping[str, float]) -> list[str]:
    """Returns the pieces of the most likely split (arXiv 1804.10959).

    A character that is no piece costs 10 more than the worst piece.
    """
    unknown = np.float32(min(scores.values()) - 10.0)
    longest = max(map(len, scores))
    best: list[tuple[np.float32, int]] = [(np.float32(0.0), 0)]
    for end in range(1, len(text) + 1):
        choices = []
        for start in range(max(0, end - longest), end):
            piece = text[start:end]
            if piece in scores:
                cost = np.float32(scores[piece])
            elif end - start == 1:
                cost = unknown
            else:
                continue
            choices.append((np.float32(best[start][0] + cost), start))
        best.append(max(choices, key=lambda choice: choice[0]))
    pieces, end = [], len(text)
    while end:
        start = best[end][1]
        pieces.append(text[start:end])
        end = start
    return pieces[::-1]


def bpe_split(text: str, scores: Mapping[str, float]) -> list[str]:
    """Returns the pieces after all merges, the best score first (arXiv 1508.07909)."""
    symbols = [*text]
    while True:
        merges = [
            (-scores[left + right], i)
            for i, (left, right) in enumerate(itertools.pairwise(symbols))
            if left + right in scores
        ]
        if not merges:
            return symbols
        _, i = min(merges)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


def piece_ids(
    text: str,
    split: Callable[[str, Mapping[str, float]], list[str]],
    scores: Mapping[str, float],
    ids: Mapping[str, int],
) -> list[int]:
    """Returns the ids of a text; a character that is no piece becomes its bytes.

    Args:
      text: text after its cleaning.
      split: `unigram_split` or `bpe_split`.
      scores: score of each piece that a text can hold.
      ids: ids of all pieces, with those of the bytes, such as "<0x41>".
    """
    found = []
    for piece in split(escape(text), scores):
        if piece in scores:
            found.append(ids[piece])
        else:
            found += [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
    return found


def learn_clip(texts: Sequence[str], count: int) -> tuple[dict[str, int], list]:
    """Learns `count` merges; returns CLIP's vocabulary (ids by token) and the merges.

    As in CLIP's, the ids are those of the bytes, of the bytes that end a word, of the
    merges, and of the two special tokens.
    """
    letters = byte_letters()
    words = [
        ["".join(letters[b] for b in c.encode()) for c in word]
        for text in texts
        for word in clip_words(text)
    ]
    words = [[*"".join(word)] for word in words]
    for word in words:
        word[-1] += "</w>"
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        counts = collections.Counter(p for w in words for p in itertools.pairwise(w))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    ends = [f"{letter}</w>" for letter in letters.values()]
    joined = ["".join(pair) for pair in merges]
    tokens = [*letters.values(), *ends, *joined, *CLIP_SPECIAL]
    return {token: i for i, token in enumerate(tokens)}, merges
