"""Makes a concept list from the words and phrases of a corpus."""

import pathlib

import ibis

from align_jax.errors import InputError
from data.corpus.concepts import SPLIT_OFF
from data.corpus.engines import Engine
from data.corpus.ngrams import count_ngrams, count_texts, list_ngrams
from data.corpus.stage_tables import open_stage


def list_entries(
    engine: Engine, workdir: pathlib.Path, min_count: int, min_pmi: float
) -> list[str]:
    """Returns the frequent words and phrases of a build, the most frequent first.

    A phrase is two neighbouring words. Its pointwise mutual information is
    log2(count * N / (count of one * count of other)), where N is the number of words.

    Args:
      engine: engine that reads the stages of the build.
      workdir: workdir of the build; the normalised texts of its kept pairs are counted.
      min_count: smallest count of a word or phrase.
      min_pmi: smallest pointwise mutual information of a phrase.

    Raises:
      InputError: the build is not complete, or no entry is left.
    """
    kept = open_stage(engine, workdir, "kept.parquet")
    ngrams = count_ngrams(list_ngrams(count_texts(kept), "pairs"))
    is_phrase = ngrams.ngram.contains(" ")
    total = ngrams.filter(~is_phrase)["count"].sum().as_scalar().cast("float64")
    frequent = ngrams["count"] >= min_count
    words = ngrams.filter(~is_phrase & frequent & (ngrams.ngram != ""))
    phrases = ngrams.filter(is_phrase & frequent)
    parts = phrases.ngram.split(" ")
    phrases = phrases.mutate(one=parts[0], other=parts[1])
    for side in ("one", "other"):
        counts = words.select(ngram=words.ngram, n=words["count"])
        counts = counts.rename({side: "ngram", f"of_{side}": "n"})
        phrases = phrases.inner_join(counts, side)
    of_words = phrases.of_one.cast("float64") * phrases.of_other
    pmi = (phrases["count"] * total / of_words).log2()
    phrases = phrases.filter(pmi >= min_pmi).select("ngram", "count")
    entries = words.select("ngram", "count").union(phrases)
    found = engine.execute(entries.order_by(ibis._["count"].desc(), "ngram"))
    usable = [entry for entry in found["ngram"] if _can_be_found(entry)]
    if not usable:
        raise InputError(f"{workdir} has no word that occurs {min_count} times")
    return usable


def _can_be_found(entry: str) -> bool:
    """Returns whether an entry has letters or digits and nothing that is split off."""
    return any(map(str.isalnum, entry)) and not {*SPLIT_OFF} & {*entry}
