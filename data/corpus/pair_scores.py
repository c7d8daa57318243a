"""A rule on the likeness of a picture and its text, by any dual encoder.

The score of a pair is the cosine of the embeddings of its picture and of its normalised
text. The rule keeps the scores from a bound on, or the best ones: DataComp's CLIP score
(arXiv 2304.14108) with another model. Stages beside those of
`data.corpus.pair_embeddings`:

* `pair_scores/N.parquet`: the scores of a shard's pairs.
* `pair_score.json`: the rule's part of the report, with the bound.
"""

import functools
import pathlib
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align_jax import places
from data.corpus.pair_embeddings import count_shards, embed_pairs, read_texts
from data.corpus.rules import Rule
from data.corpus.score_ranks import ranked_score
from data.corpus.stage_tables import StageTables
from data.pictures.embeddings import read_pair_embeddings
from data.records.stages import materialise_shard

PAIR_SCORE_RULES: dict[str, Rule] = {
    "pair_score": Rule(
        "cosine of picture and text unknown, or less than",
        lambda pairs, _: pairs.pair_score,
        "min_score",
    )
}
BOUND = "pair_score.json"
SCORES = pa.schema(
    [("image_id", pa.string()), ("text", pa.string()), ("score", pa.float64())]
)


def keep_scored(stages: StageTables, pairs: ibis.Table) -> ibis.Table:
    """Scores pairs and returns those that the rule keeps; existing stages are kept.

    Args:
      stages: stages of the build, up to `distinct`.
      pairs: distinct pairs, columns image_id, text and key.
    """
    path = stages.folder / BOUND
    if not path.exists():
        embed_pairs(stages, pairs)
        tasks = [
            functools.partial(score_pairs, stages.folder, index)
            for index in range(count_shards(stages.folder))
        ]
        stages.engine.map(tasks, "score pairs", "pair")
        places.write_json(path, _bound_scores(stages, pairs))
    scores = stages.shards("pair_scores")
    bound = describe_scores(stages)["min_score"]
    if bound is None:
        return pairs.limit(0)
    return pairs.semi_join(scores.filter(scores.score >= bound), ["image_id", "text"])


def judge_scores(stages: StageTables, flagged: ibis.Table) -> ibis.Table:
    """Adds the boolean column `pair_score`, true where a pair breaks the rule.

    Pairs that were not scored, since another rule drops them, do not break it.
    """
    scores, bound = stages.shards("pair_scores"), describe_scores(stages)["min_score"]
    high = ibis.literal(False) if bound is None else scores.score >= bound
    low = scores.select("image_id", "text", low=~high.fill_null(False))
    joined = flagged.left_join(low, ["image_id", "text"])
    return joined.select(*flagged.columns, pair_score=joined.low.fill_null(False))


def describe_scores(stages: StageTables) -> dict[str, Any]:
    """Returns the rule's part of the report.

    Returns:
      {"min_score": bound, or None if no pair has a score; "pairs": number of pairs with
      a score; "without_score": number of pairs whose picture could not be embedded}.
    """
    return places.read_object(stages.folder / BOUND)


def score_pairs(stages: pathlib.Path, index: int) -> int:
    """Writes the scores of a shard's pairs, atomically; an existing file is kept.

    Args:
      stages: folder of the stages; `pairs_to_embed` and `pair_embeddings` must exist.
      index: index of the shard.

    Returns:
      The number of pairs.
    """

    def write(temporary: pathlib.Path) -> None:
        path = stages / "pair_embeddings" / f"{index:05}.parquet"
        found = read_pair_embeddings(path)
        listed = read_texts(stages, index)
        rows = pa.compute.index_in(found.image_ids, listed["image_id"])
        texts = listed["texts"].take(rows).combine_chunks()
        scores = np.einsum("td,td->t", found.images[found.owners], found.texts)
        columns = [
            found.image_ids.take(pa.array(found.owners)),
            texts.flatten(),
            pa.array(scores.astype(np.float64), from_pandas=True),  # NaN becomes null
        ]
        pq.write_table(pa.Table.from_arrays(columns, schema=SCORES), temporary)

    return materialise_shard(stages, "pair_scores", index, write)


def _bound_scores(stages: StageTables, pairs: ibis.Table) -> dict[str, Any]:
    """Returns the result of `describe_scores` for the pairs that are left."""
    config, execute = stages.config.embeddings, stages.engine.execute
    scores = stages.shards("pair_scores").semi_join(pairs, ["image_id", "text"])
    total, known = (int(execute(n)) for n in (scores.count(), scores.score.count()))
    bound = config.min_score
    if bound is None:
        rank = int(known * config.score_fraction)
        bound = ranked_score(scores.select("score"), rank, execute)
    return {"min_score": bound, "pairs": known, "without_score": total - known}
