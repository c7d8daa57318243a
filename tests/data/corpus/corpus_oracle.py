"""The rules of data/corpus/rules.py once more, in plain Python with counters."""

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
    """Unigrams, then bigrams."""
    words = text.split(" ")
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


def vocabulary_cut(counts: Mapping[str, int], budget: int) -> int | None:
    """Smallest count that at most `budget` n-grams reach; None where there is none."""
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
    """Names of the broken rules of every distinct pair.

    Args:
      pairs: (image_id, text, language); repeated ones count once.
      pictures: image_id to (width, height, error), None where unknown; any
        other image has none of the three.
      bounds: of the rules.
      evaluation: image ids that must not be trained on.

    Returns:
      (image_id, text, language) to the names.
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
    """Rule to the pairs that break it, and those for which it is the first."""
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
