"""Writes the stage `ngrams`, in parts if one count of all n-grams needs much memory."""

import math

import ibis

from align_jax import places
from data.corpus.ngrams import count_ngrams, list_ngrams, unigrams_of
from data.corpus.stage_tables import StageTables
from data.records.stages import materialise

NGRAM_BYTES = 160  # memory of a grouping for each different n-gram
PARTS = "ngrams_in_"  # beginning of the names of stages with parts, which are removed


def save_counts(stages: StageTables, texts: ibis.Table) -> None:
    """Writes `ngrams`, the table of `count_ngrams`, unless the stage exists.

    If the different n-grams may not fit in the engine's memory, their occurrences are
    split by a hash, and each part is counted by itself.

    Args:
      stages: stages of the build.
      texts: table of `count_texts`.
    """
    if not stages.stage("ngrams").exists():
        occurrences = list_ngrams(texts, "pairs")
        parts = _count_parts(stages, texts, occurrences)
        if parts == 1:
            stages.save("ngrams", count_ngrams(occurrences))
        else:
            _save_in_parts(stages, occurrences, parts)
    for path in stages.folder.glob(f"{PARTS}*"):
        places.remove(path)


def _save_in_parts(stages: StageTables, occurrences: ibis.Table, parts: int) -> None:
    """Writes `ngrams` by the hashes of the n-grams; `parts` is a power of two."""
    # A build that goes on with another limit must not mix its parts with older ones.
    name = f"{PARTS}{parts}"
    split = occurrences.mutate(part=occurrences.ngram.hash() & (parts - 1))
    folder = stages.folder / name
    materialise(
        folder, lambda path: stages.engine.save_split(split, path, "part", "n-grams")
    )
    counted = []
    for path in sorted(folder.glob("part=*")):
        counted.append(f"{name}_{path.name}")
        table = stages.engine.read(path / "*.parquet")
        stages.save(counted[-1], count_ngrams(table))
    stages.save("ngrams", ibis.union(*map(stages.table, counted)))


def _count_parts(
    stages: StageTables, texts: ibis.Table, occurrences: ibis.Table
) -> int:
    """Returns a power of two: the number of parts whose n-grams fit in memory."""
    room = stages.engine.group_bytes() / NGRAM_BYTES
    if room == math.inf:
        return 1
    execute = stages.engine.execute
    occurring = (2 * unigrams_of(texts).length() - 1).sum()
    if (execute(occurring) or 0) <= room:  # even if all are different
        return 1
    different = execute(occurrences.ngram.approx_nunique())
    return 2 ** math.ceil(math.log2(max(1.0, different / room)))
