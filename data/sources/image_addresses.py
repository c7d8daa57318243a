"""Chooses the address of the picture that an <img> shows.

A page may load its pictures late: then `src` holds a placeholder and the address stands
in another attribute. A picture may have several candidates, in `srcset` and in the
<source> of a <picture>.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping

LAZY = ("data-src", "data-original", "data-lazy-src")
LAZY_SETS = ("data-srcset", "data-lazy-srcset")
# White space and commas, an address, and its description up to a comma outside of
# brackets. No part can give back what it took, so that a match takes linear time.
_CANDIDATE = re.compile(r"[\s,]*+(\S++)((?:[^,(]++|\([^)]*+\)?+)*+)")

Fields = Mapping[str, str | None]


def list_candidates(image: Fields, sources: Iterable[Fields] = ()) -> list[str]:
    """Returns the addresses of an <img>, the best first; [] if it has none.

    If there are addresses for late loading, others are placeholders and left out. In a
    set, the candidate of most pixels is the best; of equal ones, the first. An address
    that holds its picture, "data:...", counts only if there is no other, because it is
    most often a placeholder.

    Args:
      image: attributes of the <img>.
      sources: attributes of each <source> of its <picture>.
    """
    tags = [image, *sources]
    lazy = _largest_first(tags, LAZY_SETS)
    lazy += [address for name in LAZY if (address := _plain(image.get(name)))]
    shown = _plain(image.get("src"))
    eager = _largest_first(tags, ("srcset",)) + ([shown] if shown else [])
    for embedded in (False, True):
        for candidates in (lazy, eager):
            fitting = [c for c in candidates if is_embedded(c) is embedded]
            if fitting:
                return fitting
    return []


def _largest_first(tags: Iterable[Fields], names: Iterable[str]) -> list[str]:
    """Returns the addresses in the sets that tags have in some attributes."""
    sized = [c for tag in tags for name in names for c in _parse_set(tag.get(name))]
    sized.sort(key=lambda candidate: -candidate[0])
    return [address for _, address in sized]


def _parse_set(value: str | None) -> Iterator[tuple[float, str]]:
    """Yields (size, address) of each candidate of a `srcset`.

    The size is a width in pixels ("600w") or a density ("2x"); 1 if it is missing. A
    page uses either widths or densities.
    """
    position, value = 0, value or ""
    while found := _CANDIDATE.match(value, position):
        address, described = found[1].rstrip(","), found[2].split()
        position = found.end(1) if found[1].endswith(",") else found.end()
        size = 1.0
        for part in described if position == found.end() else ():
            if part[-1] in "wx":
                try:
                    size = float(part[:-1])
                except ValueError:
                    size = math.nan
        if address and math.isfinite(size):
            yield size, address


def _plain(value: str | None) -> str:
    return (value or "").strip()


def is_embedded(address: str) -> bool:
    """Returns whether an address holds its picture, as "data:..." does."""
    return address[:5].lower() == "data:"
