"""The stage that balances the concepts of a corpus, after all rules.

Stages, all in the folder of the build's stages:

* `candidates/part=N`: the pairs that no rule dropped. A part has about PART_PAIRS.
* `entry_list.parquet`: the concept list.
* `matches/N.parquet`: the pairs of a part with the entries that each text contains.
* `entry_chances.parquet`: the list with the count and the chance of each entry.
* `balance/N.parquet`: `matches` with the result. It replaces the stages by part before.
* `entry_counts.parquet`: the list with counts of all and of kept pairs, written last.

A part is matched and drawn in one process, and the engine counts the matches between
the two. `data.corpus.concepts` has the rules.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align_jax import places
from data.corpus.concepts import (
    EntryMatcher,
    choose_threshold,
    draw_pairs,
    hash_entries,
    read_entries,
)
from data.corpus.config import BalanceConfig
from data.corpus.rules import Rule
from data.corpus.stage_tables import StageTables
from data.records.stages import materialise, materialise_shard

PART_PAIRS = 250_000
BATCH_PAIRS = 16_384
TOP_ENTRIES = 30  # of the report

# The rules of the balance, over the columns of the stage `balance`.
BALANCE_RULES: dict[str, Rule] = {
    "no_entry": Rule(
        "the text contains no entry of the concept list",
        lambda pairs, _: pairs.no_entry,
    ),
    "not_drawn": Rule(
        "every entry of the text has enough other pairs",
        lambda pairs, _: pairs.not_drawn,
    ),
}

ENTRY_LIST = "entry_list.parquet"
PAIR = {"image_id": pa.string(), "text": pa.string(), "key": pa.int64()}
MATCHES = pa.schema(PAIR | {"entries": pa.list_(pa.int32())})
BALANCE = pa.schema([*MATCHES, *(pa.field(n, pa.bool_()) for n in BALANCE_RULES)])


def check_balance(config: BalanceConfig) -> None:
    """Raises InputError or ImportError if the list or the matcher is missing."""
    if config.entries:
        EntryMatcher(read_entries(config.entries)[:1])


def balance_pairs(stages: StageTables, pairs: ibis.Table) -> ibis.Table:
    """Balances pairs; stages that exist are kept.

    Args:
      stages: stages of the build, up to `distinct`.
      pairs: distinct pairs, columns image_id, text and key, which no rule dropped.

    Returns:
      The kept pairs, with the same columns.
    """
    if not stages.stage("entry_counts").exists():
        # The number of parts must not change when a killed build goes on.
        total = int(stages.engine.execute(stages.table("distinct").count()))
        parts = range(max(1, -(-total // PART_PAIRS)))
        _match(stages, pairs, parts)
        tasks = [functools.partial(draw_part, stages.folder, index) for index in parts]
        stages.engine.map(tasks, "draw pairs", "pair")
        entries = pq.read_table(stages.stage("entry_chances"))
        kept = _count(stages, _kept(stages), len(entries))
        entries = entries.append_column("kept", pa.array(kept))
        path = stages.stage("entry_counts")
        materialise(path, lambda path: pq.write_table(entries, path))
    for name in ("candidates", "matches"):
        places.remove(stages.folder / name)
    return _kept(stages).select("image_id", "text", "key")


def judge_balance(flagged: ibis.Table, balanced: ibis.Table) -> ibis.Table:
    """Adds a boolean column for each of BALANCE_RULES, true where a pair breaks it.

    Args:
      flagged: pairs with the columns image_id and text, and any other columns.
      balanced: the stage `balance`; pairs that are not in it break neither rule.
    """
    joined = flagged.left_join(balanced, ["image_id", "text"])
    columns = {name: joined[name].fill_null(False) for name in BALANCE_RULES}
    return joined.select(*flagged.columns, **columns)


def describe_balance(stages: StageTables) -> dict[str, Any]:
    """Returns the counts of the balance for the report.

    Returns:
      {"entries", "unmatched", "sampled": numbers of entries: all, those without a pair,
      those with more than t pairs; "pairs_per_entry": t; "matches", "matches_kept":
      sums over all entries; "top": [{"entry", "pairs", "kept"}] of the entries with the
      most pairs}.
    """
    table = pq.read_table(stages.stage("entry_counts"))
    pairs, kept = (table[name].to_numpy() for name in ("pairs", "kept"))
    order = [("pairs", "descending"), ("entry", "ascending")]
    top = table.select(["entry", "pairs", "kept"]).sort_by(order)[:TOP_ENTRIES]
    threshold = _threshold(pairs, stages.config.balance)
    return {
        "entries": len(table),
        "unmatched": int((pairs == 0).sum()),
        "sampled": int((pairs > threshold).sum()),
        "pairs_per_entry": threshold,
        "matches": int(pairs.sum()),
        "matches_kept": int(kept.sum()),
        "top": top.to_pylist(),
    }


def _kept(stages: StageTables) -> ibis.Table:
    """Returns the rows of the stage `balance` whose pairs are kept."""
    balanced = stages.shards("balance")
    return balanced.filter(~balanced.no_entry & ~balanced.not_drawn)


def _match(stages: StageTables, pairs: ibis.Table, parts: range) -> None:
    """Writes the stages up to `entry_chances`."""
    config = stages.config.balance
    listed = stages.folder / ENTRY_LIST
    materialise(
        listed,
        lambda path: pq.write_table(
            pa.table({"entry": read_entries(config.entries)}), path
        ),
    )
    raw = stages.shards("pairs")
    raw = raw.semi_join(pairs, ["image_id", "text"])
    # A pair may have several spellings in the source; the least one is searched.
    texts = raw.group_by(*PAIR).agg(searched=raw[config.column].min())
    part = ((texts.key & (2**62 - 1)) % len(parts)).cast("int64")
    candidates = texts.mutate(part=part)
    materialise(
        stages.folder / "candidates",
        lambda path: stages.engine.save_split(candidates, path, "part", "candidates"),
    )
    tasks = [functools.partial(match_part, stages.folder, index) for index in parts]
    stages.engine.map(tasks, "match entries", "pair")
    entries = pq.read_table(listed)
    counts = _count(stages, stages.shards("matches"), len(entries))
    threshold = _threshold(counts, config)
    chances = threshold / np.maximum(counts, threshold)
    entries = entries.append_column("pairs", pa.array(counts))
    entries = entries.append_column("probability", pa.array(chances))
    path = stages.stage("entry_chances")
    materialise(path, lambda path: pq.write_table(entries, path))


def _threshold(counts: np.ndarray, config: BalanceConfig) -> int:
    """Returns t, the number of pairs beyond which an entry is sampled."""
    if config.tail_share:
        return choose_threshold(counts, config.tail_share)
    return config.pairs_per_entry


def _count(stages: StageTables, pairs: ibis.Table, entries: int) -> np.ndarray:
    """Returns the number of pairs of each entry, (E,) int64."""
    matches = pairs.select(entry=pairs.entries.unnest())
    found = stages.engine.execute(matches.group_by("entry").agg(n=matches.count()))
    counts = np.zeros(entries, np.int64)
    counts[found["entry"].to_numpy(np.int64)] = found["n"].to_numpy(np.int64)
    return counts


def match_part(stages: pathlib.Path, index: int) -> int:
    """Writes the stage `matches` of a part, atomically, unless it exists.

    Args:
      stages: folder of the stages; `candidates` and `entry_list.parquet` must exist.
      index: index of the part.

    Returns:
      The number of pairs.
    """

    def write(temporary: pathlib.Path) -> None:
        listed = stages / ENTRY_LIST
        matcher = _open_matcher(listed, listed.stat().st_mtime_ns)
        with pq.ParquetWriter(temporary, MATCHES) as writer:
            for batch in _read_part(stages / "candidates" / f"part={index}"):
                columns = [batch[name] for name in PAIR]
                matched = matcher.match(batch["searched"])
                table = pa.Table.from_arrays([*columns, matched], schema=MATCHES)
                writer.write_table(table)

    return materialise_shard(stages, "matches", index, write)


def draw_part(stages: pathlib.Path, index: int) -> int:
    """Writes the stage `balance` of a part, atomically, unless it exists.

    Args:
      stages: folder of the stages; `matches` and `entry_chances.parquet` must exist.
      index: index of the part.

    Returns:
      The number of pairs.
    """

    def write(temporary: pathlib.Path) -> None:
        entries = pq.read_table(stages / "entry_chances.parquet")
        hashes = hash_entries(entries["entry"].to_pylist())
        chances = entries["probability"].to_numpy()
        matches = pq.ParquetFile(stages / "matches" / f"{index:05}.parquet")
        with pq.ParquetWriter(temporary, BALANCE) as writer:
            for batch in matches.iter_batches(BATCH_PAIRS):
                matched = batch["entries"]
                drawn = draw_pairs(batch["key"].to_numpy(), matched, hashes, chances)
                no_entry = pc.equal(pc.list_value_length(matched), 0)
                not_drawn = pc.and_not(pc.invert(no_entry), pa.array(drawn))
                columns = [*batch.columns, no_entry, not_drawn]
                writer.write_table(pa.Table.from_arrays(columns, schema=BALANCE))

    return materialise_shard(stages, "balance", index, write)


def _read_part(folder: pathlib.Path) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a part; a part without rows has no folder."""
    for path in sorted(folder.glob("*.parquet")):
        yield from pq.ParquetFile(path).iter_batches(BATCH_PAIRS)


@functools.lru_cache(maxsize=1)
def _open_matcher(path: pathlib.Path, written: int) -> EntryMatcher:
    """Returns the matcher of a concept list, made once per process.

    Args:
      path: path of the list.
      written: time of its writing, so that another list at the path is read.
    """
    return EntryMatcher(pq.read_table(path)["entry"].to_pylist())
