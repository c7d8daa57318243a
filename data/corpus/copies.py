"""A rule that keeps one of nearly equal pictures of a corpus, by their hashes.

Equal files are one picture already. A picture is better than another if it has more
pixels, or as many and a lower image_id. A picture is dropped if its hash and that of a
better one differ in at most `max_hash_distance` bits. So the result depends neither on
the order of the pictures nor on the engine, and at least one picture of every chain of
copies stays.

Pairs of near hashes are found without comparing all. The 64 bits are cut into `k`
blocks. Hashes that differ in at most `d` bits agree in at least `k - d` of the blocks,
so one join for each choice of `k - d` blocks finds them all. More blocks make longer
keys, but more joins; `choose_masks` takes the `k` of least work.

Stages, all in the folder of the build's stages:

* `hashed.parquet`: the pictures of the pairs that are left, with their hashes.
* `best_of_hash.parquet`: the best picture of each hash.
* `near_hashes/N`: the result of one join: each hash near which there is a better
  picture, and the best of these pictures.
* `copies.parquet`: the dropped pictures, each with the best one near it.
"""

import functools
import itertools
import math
import pathlib
from typing import Any

import ibis

from data.corpus.rules import Rule
from data.corpus.stage_tables import StageTables
from data.records.stages import materialise

HASH_BITS = 64
MOST_JOINS = 500

COPY_RULES: dict[str, Rule] = {
    "near_copy": Rule(
        "a better picture is near; bits that differ, at most",
        lambda pairs, _: pairs.near_copy,
        "max_copy_distance",
    )
}


@ibis.udf.scalar.builtin
def bit_count(bits: int) -> int:  # type: ignore[empty-body]
    """Returns the number of ones of a 64-bit integer; all engines have it."""


def keep_originals(stages: StageTables, pairs: ibis.Table) -> ibis.Table:
    """Returns the pairs whose picture has no better one near it.

    Args:
      stages: stages of the build, up to `distinct`; stages that exist are kept.
      pairs: distinct pairs, columns image_id, text and key.
    """
    if not stages.stage("copies").exists():
        pictures = stages.table("pictures").semi_join(pairs, "image_id")
        pictures = pictures.filter(pictures.phash.notnull())
        area = pictures.width.cast("int64") * pictures.height
        stages.save("hashed", pictures.select("image_id", "phash", area=area))
        hashed = stages.table("hashed")
        stages.save("best_of_hash", best_pictures(hashed, "phash", "image_id", "area"))
        _match(stages)
        stages.save("copies", _find_copies(stages))
    return pairs.anti_join(stages.table("copies"), "image_id")


def judge_copies(stages: StageTables, flagged: ibis.Table) -> ibis.Table:
    """Adds the boolean column `near_copy`, true where the picture is dropped."""
    return judge_by_copies(stages.table("copies"), flagged, "near_copy")


def judge_by_copies(copies: ibis.Table, flagged: ibis.Table, rule: str) -> ibis.Table:
    """Adds a boolean column for a rule, true where the picture is one of the copies."""
    joined = flagged.left_join(copies.select("image_id", copy=True), "image_id")
    return joined.select(*flagged.columns, **{rule: joined.copy.fill_null(False)})


def describe_copies(stages: StageTables) -> dict[str, Any]:
    """Returns {"pictures": number of compared pictures, "copies": dropped ones}."""
    counts = {"pictures": stages.table("hashed"), "copies": stages.table("copies")}
    return {n: int(stages.engine.execute(t.count())) for n, t in counts.items()}


def choose_masks(distance: int, hashes: int) -> list[int]:
    """Returns the masks of the joins, signed 64-bit integers.

    Two hashes that differ in 1 to `distance` bits are equal under at least one mask.

    Args:
      distance: maximum number of bits, d; if it is 0, no join is needed.
      hashes: number of different hashes, on which the number of joins depends.
    """
    if not distance:
        return []

    def work(blocks: int) -> float:
        joins = math.comb(blocks, distance)
        bits = (HASH_BITS // blocks) * (blocks - distance)
        return joins * (1 + hashes / 2.0**bits)

    choices = range(distance + 1, HASH_BITS + 1)
    few = [k for k in choices if math.comb(k, distance) <= MOST_JOINS]
    blocks = min(few, key=work)
    ends = [HASH_BITS * n // blocks for n in range(blocks + 1)]
    parts = [2**high - 2**low for low, high in itertools.pairwise(ends)]
    masks = map(sum, itertools.combinations(parts, blocks - distance))
    return [mask - 2**HASH_BITS * (mask >> 63) for mask in masks]


def best_pictures(table: ibis.Table, by: str, name: str, area: str) -> ibis.Table:
    """Returns the row of the best picture for each value of a column.

    Args:
      table: rows with the columns of the next arguments.
      by: column of the groups.
      name: column of the pictures' ids.
      area: column of the pictures' numbers of pixels.
    """
    order = [ibis.desc(table[area]), table[name]]
    ranked = table.mutate(
        rank=ibis.row_number().over(ibis.window(group_by=by, order_by=order))
    )
    return ranked.filter(ranked.rank == 0).drop("rank")


def _match(stages: StageTables) -> None:
    """Writes the stage `near_hashes`, a file or folder for each join."""
    best = stages.table("best_of_hash")
    distance = stages.config.copies.max_hash_distance
    hashes = int(stages.engine.execute(best.count()))
    for index, mask in enumerate(choose_masks(distance, hashes)):
        one = best.mutate(block=best.phash & mask)
        other = best.select(
            block=best.phash & mask,
            near=best.phash,
            better=best.image_id,
            better_area=best.area,
        )
        pairs = one.join(other, "block")
        is_better = (pairs.better_area > pairs.area) | (
            (pairs.better_area == pairs.area) & (pairs.better < pairs.image_id)
        )
        near = bit_count(pairs.phash ^ pairs.near) <= distance
        found = pairs.filter(is_better & near).select("phash", "better", "better_area")
        found = best_pictures(found, "phash", "better", "better_area")
        materialise(
            _join_path(stages, index),
            functools.partial(stages.engine.save, found, label=f"near hashes {index}"),
        )


def _join_path(stages: StageTables, index: int) -> pathlib.Path:
    return stages.folder / "near_hashes" / f"{index:05}.parquet"


def _find_copies(stages: StageTables) -> ibis.Table:
    """Returns the pictures to drop, with the column `better`, in any order."""
    hashed, best = stages.table("hashed"), stages.table("best_of_hash")
    of_hash = best.select("phash", better=best.image_id, better_area=best.area)
    if _join_path(stages, 0).exists():
        near = stages.shards("near_hashes").select(*of_hash.columns)
        of_hash = best_pictures(of_hash.union(near), "phash", "better", "better_area")
    copies = hashed.join(of_hash, "phash")
    return copies.filter(copies.image_id != copies.better).select("image_id", "better")
