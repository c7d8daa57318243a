"""Concepts in texts, and the balance of their counts: MetaCLIP (arXiv 2309.16671).

A concept list has some 500,000 entries, words and phrases. A text counts for each entry
that it contains as whole words. An entry with c pairs keeps each of them by the chance
min(1, t / c), so about t pairs at most. A pair stays if any of its entries keeps it.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from align_jax import places
from align_jax.errors import InputError

SPLIT_OFF = ",.;:?!`"  # characters that get a space on both sides


def read_entries(path: str) -> list[str]:
    """Reads a concept list; repeated entries and empty lines are left out.

    Args:
      path: path or URL of a JSON list of strings (`.json`), or of a text with an entry
        a line, where spaces and tabs at the ends of a line do not count.

    Raises:
      InputError: the file is unreadable, has no entries or other content.
    """
    if path.endswith(".json"):
        entries = places.read_json(path)
        if not isinstance(entries, list):
            kind = type(entries).__name__
            raise InputError(f"{path} holds a {kind}; wanted a list of strings")
        for number, entry in enumerate(entries):
            if not _is_text(entry):
                raise InputError(
                    f"entry {number} of {path} is {entry!r}; wanted a text that is not"
                    " blank"
                )
    else:
        lines = places.read_text(path).removeprefix("\ufeff").split("\n")
        entries = [line.strip(" \t\r") for line in lines if line.strip()]
    if not entries:
        raise InputError(f"{path} (config.balance.entries) has no entries")
    return list(dict.fromkeys(entries))


def _is_text(entry: object) -> bool:
    """Returns whether a JSON value is a text, not blank, without half characters."""
    return (
        isinstance(entry, str)
        and bool(entry.strip())
        and not re.search("[\ud800-\udfff]", entry)
    )


def space_out(texts: pa.Array) -> pa.Array:
    """Puts each text between spaces, and spaces around each of , . ; : ? ! and `.

    Tabs and line ends become spaces.
    """
    spaced = pc.binary_join_element_wise("", texts, "", " ")
    spaced = pc.replace_substring_regex(spaced, f"([{SPLIT_OFF}])", r" \1 ")
    return pc.replace_substring_regex(spaced, r"[\t\n\r]", " ")


class EntryMatcher:
    """Finds the entries in texts by one Aho-Corasick automaton of all entries.

    The automaton of 500,000 entries takes 55 MB of memory, and 140 MB while it is made.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        """Makes the automaton; the entries must differ."""
        # Imported here, because only a build that balances concepts needs it.
        from ahocorasick_rs import AhoCorasick, Implementation, MatchKind

        self._automaton = AhoCorasick(
            [f" {entry} " for entry in entries],
            matchkind=MatchKind.Standard,  # the kind that finds overlapping entries
            store_patterns=False,
            implementation=Implementation.ContiguousNFA,
        )

    def match(self, texts: pa.Array) -> pa.ListArray:
        """Returns the indices of the entries that each text contains.

        An entry is contained if it stands between spaces in `space_out` of the text.

        Args:
          texts: (N,) strings.

        Returns:
          N lists of int32, ascending, each index once.
        """
        find = self._automaton.find_matches_as_indexes
        matched = [
            sorted({entry for entry, _, _ in find(text, overlapping=True)})
            for text in space_out(texts).to_pylist()
        ]
        return pa.array(matched, pa.list_(pa.int32()))


def choose_threshold(counts: np.ndarray, tail_share: float) -> int:
    """Returns t, the count up to which the entries have a share of all matches.

    It is the count at which the cumulated share, from the rarest entry on, is nearest
    to `tail_share`.

    Args:
      counts: (E,) number of pairs that each entry matches.
      tail_share: share of the matches, from 0 to below 1.
    """
    rising = np.sort(counts[counts > 0])
    if not len(rising):
        return 1
    cumulated = np.cumsum(rising) / rising.sum()
    return int(rising[np.abs(cumulated - tail_share).argmin()])


def draw_pairs(
    keys: np.ndarray,
    matched: pa.ListArray,
    hashes: np.ndarray,
    probabilities: np.ndarray,
) -> np.ndarray:
    """Decides which pairs are kept: those of which one match draws below its chance.

    A draw is a hash of the pair's key and of the entry. So it depends neither on the
    order of pairs and entries nor on their division among processes.

    Args:
      keys: (N,) int64 shuffle keys of the pairs, which depend on the seed.
      matched: N lists of indices of entries.
      hashes: (E,) uint64 from `hash_entries`.
      probabilities: (E,) chance of each entry to keep a pair.

    Returns:
      (N,) bool, false for a pair without a match.
    """
    entries = matched.flatten().to_numpy()  # (M,)
    lengths = pc.list_value_length(matched).to_numpy()
    owners = np.repeat(np.arange(len(keys)), lengths)  # (M,)
    hashed = mix(keys.view(np.uint64)[owners] ^ hashes[entries])
    uniform = (hashed >> np.uint64(11)) * 2.0**-53  # (M,), from 0 to below 1
    chosen = owners[uniform < probabilities[entries]]
    return np.bincount(chosen, minlength=len(keys)) > 0


def hash_entries(entries: Sequence[str]) -> np.ndarray:
    """Returns the first 64 bits of the BLAKE2b hash of each entry, (E,) uint64."""
    content = b"".join(
        hashlib.blake2b(entry.encode(), digest_size=8).digest() for entry in entries
    )
    return np.frombuffer(content, ">u8").astype(np.uint64)


def mix(numbers: np.ndarray) -> np.ndarray:
    """Hashes uint64 numbers to random-looking ones (a step of splitmix64)."""
    x = numbers + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
