"""An independent version of data/corpus/rules.py, in plain Python with counters."""

import collections
import itertools
from collections.abc import Iterable, Mapping

from data.corpus.rules import RuleBounds

RULES = (
    "other_language",
    "no_image",
    "undecodable",
    "shorter_side",
    "aspect_ratio",
    "texts_per_image",
    "evaluation_image",
    "images_per_text",
    "rare_ngram",
    "too_short",
    "too_long",
)


def ngrams_of(text: str) -> list[str]:
    """Returns the unigrams, then the bigrams, of a text."""
    words = text.split(" ")
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


def vocabulary_cut(counts: Mapping[str, int], budget: int) -> int | None:
    """Returns the least count that at most `budget` n-grams reach, or None."""
    by_count = collections.Counter(counts.values())
    cut, total = None, 0
    for count in sorted(by_count, reverse=True):
        total += by_count[count]
        if total > budget:
            break
        cut = count
    return cut


def decide(
    pairs: Iterable[tuple[str, str, str | None]],
    pictures: Mapping[str, tuple[int | None, int | None, str | None]],
    bounds: RuleBounds,
    evaluation: Iterable[str] = (),
) -> dict[tuple[str, str, str | None], set[str]]:
    """Finds the rules that each distinct pair breaks.

    Args:
      pairs: tuples (image_id, text, language); a repeated pair counts once.
      pictures: tuples (width, height, error) by image_id, each value None if unknown;
        for an image that is missing here, all three are unknown.
      bounds: bounds of the rules.
      evaluation: image ids that must not be trained on.

    Returns:
      The names of the broken rules by (image_id, text, language).
    """
    pairs = set(pairs)
    evaluation = set(evaluation)
    counts = collections.Counter()
    texts, images = collections.defaultdict(set), collections.defaultdict(set)
    for image, text, _ in pairs:
        counts.update(ngrams_of(text))
        texts[image].add(text)
        images[text].add(image)
    cut = vocabulary_cut(counts, bounds.frequent_ngrams)
    if cut is None:
        raise ValueError(f"no count fits {bounds.frequent_ngrams} n-grams")
    of_text = {text: _of_text(text, counts, cut, bounds) for text in images}
    found = {}
    for image, text, language in pairs:
        broken = set(of_text[text])
        if bounds.languages and language not in bounds.languages:
            broken.add("other_language")
        broken |= _of_picture(*pictures.get(image, (None, None, None)), bounds)
        if len(texts[image]) > bounds.max_texts_per_image:
            broken.add("texts_per_image")
        if image in evaluation:
            broken.add("evaluation_image")
        if len(images[text]) > bounds.max_images_per_text:
            broken.add("images_per_text")
        found[image, text, language] = broken
    return found


def count_rules(found: Mapping[tuple, set[str]]) -> dict[str, tuple[int, int]]:
    """Counts per rule the pairs that break it, and those that break it first."""
    breaks, first = collections.Counter(), collections.Counter()
    for broken in found.values():
        breaks.update(broken)
        first.update([next(rule for rule in RULES if rule in broken)] if broken else [])
    return {rule: (breaks[rule], first[rule]) for rule in RULES}


def _of_text(
    text: str, counts: Mapping[str, int], cut: int, bounds: RuleBounds
) -> set[str]:
    broken = set()
    unigrams = text.count(" ") + 1
    if any(counts[ngram] < cut for ngram in ngrams_of(text)):
        broken.add("rare_ngram")
    if not text or unigrams < bounds.min_unigrams:
        broken.add("too_short")
    if unigrams > bounds.max_unigrams:
        broken.add("too_long")
    return broken


def _of_picture(
    width: int | None, height: int | None, error: str | None, bounds: RuleBounds
) -> set[str]:
    broken = set() if error is None else {"undecodable"}
    if width is None or height is None:
        return broken | {"no_image"}
    shorter, longer = sorted((width, height))
    if shorter <= bounds.min_shorter_side:
        broken.add("shorter_side")
    if longer >= bounds.max_aspect_ratio * shorter:
        broken.add("aspect_ratio")
    return broken
