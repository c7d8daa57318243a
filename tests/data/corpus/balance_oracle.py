"""An independent statement of the balance of concepts, by a scan of every entry."""

import hashlib
from collections.abc import Mapping, Sequence

MASK = (1 << 64) - 1


def contained(text: str, entries: Sequence[str]) -> list[str]:
    """Returns the entries that stand between spaces in a text, in their order."""
    spaced = " "
    for letter in text:
        if letter in ",.;:?!`":
            spaced += f" {letter} "
        else:
            spaced += " " if letter in "\t\n\r" else letter
    spaced += " "
    return [entry for entry in entries if f" {entry} " in spaced]


def draw(key: int, entry: str) -> float:
    """Returns the draw of an entry for a pair, from 0 to below 1."""
    digest = hashlib.blake2b(entry.encode(), digest_size=8).hexdigest()
    x = ((key & MASK) ^ int(digest, 16)) + 0x9E3779B97F4A7C15 & MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ x >> shift) * factor & MASK
    x ^= x >> 31
    return (x >> 11) / 2**53


def balance(
    pairs: Mapping[tuple, tuple[str, int]], entries: Sequence[str], t: int
) -> tuple[dict[tuple, bool | None], dict[str, tuple[int, int]]]:
    """Balances pairs.

    Args:
      pairs: text to search and shuffle key, by the name of each pair.
      entries: entries that differ.
      t: number of pairs beyond which an entry is sampled.

    Returns:
      Whether each pair is kept, None if it contains no entry; and the numbers of pairs
      and of kept pairs of each entry.
    """
    found = {name: contained(text, entries) for name, (text, _) in pairs.items()}
    counts = {e: sum(e in some for some in found.values()) for e in entries}
    kept = {}
    for name, (_, key) in pairs.items():
        chances = [(draw(key, e), t / max(counts[e], t)) for e in found[name]]
        kept[name] = any(u < p for u, p in chances) if chances else None
    after = {e: sum(e in found[n] for n in pairs if kept[n]) for e in entries}
    return kept, {e: (counts[e], after[e]) for e in entries}


def threshold(counts: Sequence[int], share: float) -> int:
    """Returns the count up to which the rarest entries have about a share of all."""
    rising = sorted(n for n in counts if n)
    best, nearest = 1, 2.0
    for index, count in enumerate(rising):
        distance = abs(sum(rising[: index + 1]) / sum(rising) - share)
        if distance < nearest:
            best, nearest = count, distance
    return best
