"""Time and memory of the balance of concepts.

    python -m benchmarks.balance --pairs 500000 --entries 500000

The rows are those of `benchmarks.corpus`. The entries are the words and the phrases of
up to three words that occur most often in 250,000 of the texts. Everything runs in one
process, and the seconds are CPU seconds of all its threads, so a busy machine changes
them little.
"""

import argparse
import collections
import pathlib
import shutil
import time

import pyarrow.parquet as pq

from benchmarks.corpus import peak_bytes
from benchmarks.corpus_rows import generate
from data.corpus.balance import balance_pairs
from data.corpus.config import BalanceConfig, CorpusConfig, EngineConfig
from data.corpus.engines import DuckDB
from data.corpus.rules import RuleBounds
from data.corpus.stage_tables import StageTables
from data.sources.config import SourceConfig


class TimedDuckDB(DuckDB):
    """DuckDB that adds up the CPU seconds of its calls, in `seconds` by label."""

    def __init__(self, config, spill):
        """Opens the database."""
        super().__init__(config, spill)
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def _timed(self, label: str, call, *arguments):
        start = time.process_time()
        result = call(*arguments)
        self.seconds[label] += time.process_time() - start
        return result

    def execute(self, expression):
        """Evaluates an expression."""
        return self._timed("count", super().execute, expression)

    def save_split(self, table, path, by, label):
        """Writes a folder with one subfolder for each value of a column."""
        self._timed("split", super().save_split, table, path, by, label)

    def map(self, tasks, label, unit):
        """Runs tasks; returns the total number of rows."""
        return self._timed(label, super().map, tasks, label, unit)


def list_entries(folder: pathlib.Path, entries: int) -> list[str]:
    """Returns the most frequent phrases of up to three words of the first texts."""
    counts: collections.Counter = collections.Counter()
    for text in pq.read_table(folder / "pairs/00000.parquet")["text"].to_pylist():
        words = text.split(" ")
        for length in (1, 2, 3):
            starts = range(len(words) - length + 1)
            counts.update(" ".join(words[s : s + length]) for s in starts)
    return [entry for entry, _ in counts.most_common(entries)]


def main() -> None:
    """Reads the flags, balances the pairs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--pairs-per-entry", type=int, default=50)
    parser.add_argument("--folder", type=pathlib.Path, default="runs/benchmark_corpus")
    parser.add_argument("--memory-limit", default="4GB")
    flags = parser.parse_args()
    rows = flags.folder / f"{flags.pairs}_0"
    generate(rows, flags.pairs, 0)
    listed = flags.folder / f"entries_{flags.pairs}_{flags.entries}.txt"
    if not listed.exists():
        listed.write_text("\n".join(list_entries(rows, flags.entries)) + "\n")
    out = flags.folder / "balance"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    config = CorpusConfig(
        name="benchmark",
        seed=0,
        ingest=SourceConfig("parquet", "none"),
        rules=RuleBounds(),
        vocabulary_size=1,
        balance=BalanceConfig(str(listed), flags.pairs_per_entry, column="text"),
        engine=EngineConfig(workers=1, memory_limit=flags.memory_limit),
    )
    stages = StageTables(config, out)
    stages.engine.close()
    stages.engine = engine = TimedDuckDB(config.engine, out / "spill")
    (out / "stages").mkdir()
    (out / "stages" / "pairs").symlink_to((rows / "pairs").resolve())
    distinct = stages.shards("pairs").select("image_id", "text", "key").distinct()
    stages.save("distinct", distinct)
    total = pq.read_metadata(stages.stage("distinct")).num_rows
    before = peak_bytes()
    kept = int(engine.execute(balance_pairs(stages, stages.table("distinct")).count()))
    sizes = pq.read_table(stages.stage("entry_counts"))
    matches = sum(sizes["pairs"].to_pylist())
    print(f"{total} distinct pairs, {len(sizes)} entries, {kept} pairs kept")
    print(
        f"{matches / total:.1f} entries a pair; peak {peak_bytes() >> 20} MiB,"
        f" {before >> 20} before"
    )
    for label, seconds in engine.seconds.items():
        rate = total / seconds
        print(f"{label:<16}{seconds:>8.2f} s{rate:>12,.0f} pairs/s")


if __name__ == "__main__":
    main()
