"""The stages of a corpus: raw pairs to rules, vocabulary and records.

Stages are materialised in DIR/stages one after the other, each whole or absent, so a
killed build goes on at the first one missing. DIR/records holds the dataset with its
vocabulary and manifest, DIR/report.json what each rule dropped.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm

from data import records, rules
from data.corpus_config import CorpusConfig
from data.errors import DataError
from data.images import IMAGES, describe_images
from data.ingest import PAIRS, RAW_COLUMNS, open_table, read_pairs
from data.stages import claim, materialise, write_file
from data.vocabulary import learn_vocabulary

VERSIONED = ("duckdb", "ibis-framework", "pyarrow", "tensorflow", "tensorflow-text")


class Build:
    """The stages of one corpus, in the order of their methods."""

    def __init__(self, config: CorpusConfig, directory: pathlib.Path):
        """Opens the engine; its spill folder is inside `directory`."""
        self.config = config
        self.directory = directory
        self.engine = ibis.duckdb.connect(
            memory_limit=config.memory_limit,
            temp_directory=str(directory / "stages" / "spill"),
        )

    def stage(self, name: str) -> pathlib.Path:
        """Path of a stage's Parquet file."""
        return self.directory / "stages" / f"{name}.parquet"

    def table(self, name: str) -> ibis.Table:
        """A stage as an expression."""
        return self.engine.read_parquet(self.stage(name))

    def save(self, name: str, expression: ibis.Table) -> None:
        """Materialises an expression as a stage."""
        materialise(
            self.stage(name), lambda path: self.engine.to_parquet(expression, path)
        )

    def ingest(self) -> None:
        """Normalises the raw pairs and measures their pictures: `images`, `pairs`."""
        if self.stage("pairs").exists():
            return
        seen: set[str] = set()

        def write(path: pathlib.Path) -> None:
            images = self.stage("images")
            images.parent.mkdir(parents=True, exist_ok=True)
            temporary = images.with_name("images.tmp")
            with (
                pq.ParquetWriter(path, PAIRS) as pair_writer,
                pq.ParquetWriter(temporary, IMAGES) as image_writer,
                tqdm.tqdm(desc="ingest", unit="pair", disable=None) as bar,
            ):
                for pairs, pictures in read_pairs(self.config.ingest, self.config.seed):
                    pair_writer.write_table(pairs)
                    new = [name for name in pictures if name not in seen]
                    seen.update(new)
                    table = describe_images(new, [pictures[name] for name in new])
                    image_writer.write_table(table)
                    bar.update(len(pairs))
            temporary.rename(images)

        materialise(self.stage("pairs"), write)

    def distinct(self) -> None:
        """Drops pairs that repeat image, text and language: `distinct`."""
        pairs = self.table("pairs")
        by = pairs.group_by("image_id", "text", "language", "key")
        self.save("distinct", by.agg(alt_text=pairs.alt_text.min()))

    def ngrams(self) -> int:
        """Counts n-grams and finds the texts with rare ones; returns the cut."""
        pairs = self.table("distinct")
        self.save("ngrams", rules.count_ngrams(pairs))
        ngrams = self.table("ngrams")
        budget = self.config.rules.frequent_ngrams
        cut = self.engine.execute(rules.vocabulary_cut(ngrams, budget))
        if cut is None:
            raise DataError(
                f"config.rules.frequent_ngrams is {budget}, fewer than the n-grams of"
                " the highest count; raise it"
            )
        self.save("rare_texts", rules.find_rare_texts(pairs, ngrams, int(cut)))
        return int(cut)

    def flags(self) -> None:
        """Evaluates every rule on every pair: `flags`, then the survivors: `kept`."""
        evaluation = ibis.memtable(pa.table({"image_id": pa.array([], pa.string())}))
        if self.config.evaluation_images:
            path = self.config.evaluation_images
            evaluation = self.engine.read_parquet(path).select("image_id")
        flagged = rules.flag_pairs(
            self.table("distinct"),
            self.table("images"),
            self.table("rare_texts"),
            evaluation,
            self.config.rules,
        )
        self.save("flags", flagged)
        flagged = self.table("flags")
        broken = [flagged[name] for name in self.rule_names()]
        survivors = flagged.filter(~ibis.or_(*broken))
        self.save("kept", survivors.select("image_id", "text", "key").distinct())

    def rule_names(self) -> list[str]:
        """Rules in their order."""
        return [n for n in self.table("flags").columns if n not in PAIRS.names]

    def report(self, cut: int) -> dict[str, Any]:
        """Counts what each rule dropped, alone and first.

        Raises:
          DataError: nothing is left; the message holds the counts.
        """
        flagged, names = self.table("flags"), self.rule_names()
        counts: dict[str, Any] = {"pairs": flagged.count()}
        earlier = ibis.literal(False)
        for name in names:
            counts[f"breaks {name}"] = flagged[name].sum()
            counts[f"first {name}"] = (flagged[name] & ~earlier).sum()
            earlier = earlier | flagged[name]
        row = self.engine.execute(flagged.aggregate(**counts)).iloc[0]
        kept = self.table("kept")
        report = {
            "pairs_raw": int(self.engine.execute(self.table("pairs").count())),
            "pairs_in": int(row["pairs"]),
            "pairs_kept": int(self.engine.execute(kept.count())),
            "images_kept": int(self.engine.execute(kept.image_id.nunique())),
            "ngram_cut": cut,
            "rules": [
                {
                    "rule": name,
                    "breaks": int(row[f"breaks {name}"]),
                    "first": int(row[f"first {name}"]),
                }
                for name in names
            ],
        }
        if not report["pairs_kept"]:
            first = ", ".join(f"{r['rule']} {r['first']}" for r in report["rules"])
            raise DataError(
                f"no pair of {report['pairs_in']} is left after the rules (dropped"
                f" first by: {first}); loosen config.rules"
            )
        return report

    def records(self, report: dict[str, Any]) -> None:
        """Learns the vocabulary and writes the dataset with its manifest."""
        materialise(
            self.directory / "records", lambda folder: self._records(folder, report)
        )

    def _records(self, folder: pathlib.Path, report: dict[str, Any]) -> None:
        kept = self.table("kept")
        words = kept.select(word=rules.unigrams_of(kept).unnest())
        counts = self.engine.execute(words.group_by("word").agg(n=words.count()))
        pairs = zip(counts["word"], map(int, counts["n"]), strict=True)
        vocabulary = learn_vocabulary(pairs, self.config.vocabulary_size)
        folder.mkdir()
        text = "\n".join(vocabulary) + "\n"
        (folder / "vocabulary.txt").write_text(text)
        shards = records.write_split(
            folder,
            self.config.name,
            "train",
            tqdm.tqdm(self._examples(), "records", report["pairs_kept"], disable=None),
            report["pairs_kept"],
            self.config.shards,
        )
        features = records.corpus_features()
        records.write_metadata(folder, self.config.name, features, {"train": shards})
        manifest = {
            **report,
            "vocabulary_size": len(vocabulary),
            "vocabulary_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "shards": [dataclasses.asdict(shard) for shard in shards],
            "config": dataclasses.asdict(self.config),
            "versions": {n: importlib.metadata.version(n) for n in VERSIONED},
        }
        write_file(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")

    def _examples(self) -> Iterator[bytes]:
        kept, images = self.table("kept"), self.table("images")
        joined = kept.join(images.select("image_id", "image"), "image_id")
        for batch in joined.order_by("key", "text").to_pyarrow_batches(chunk_size=1024):
            for row in batch.to_pylist():
                yield records.make_example(
                    image=row["image"],
                    text=row["text"].encode(),
                    image_id=row["image_id"].encode(),
                    key=row["key"],
                )


def format_report(report: dict[str, Any]) -> str:
    """Lays the rules' table out for a terminal."""
    lines = [f"{'rule':<20}{'breaks':>10}{'dropped first':>15}"]
    lines += [
        f"{r['rule']:<20}{r['breaks']:>10}{r['first']:>15}" for r in report["rules"]
    ]
    lines.append(
        f"{report['pairs_in']} distinct pairs in, {report['pairs_kept']} kept, of"
        f" {report['images_kept']} pictures"
    )
    return "\n".join(lines)


def check_inputs(config: CorpusConfig) -> None:
    """Raises DataError where a table that the config names is not what is wanted."""
    open_table(config.ingest.pairs, RAW_COLUMNS, "config.ingest.pairs")
    if config.evaluation_images:
        field = "config.evaluation_images"
        open_table(config.evaluation_images, {"image_id": pa.string()}, field)


def build(config: CorpusConfig, directory: pathlib.Path) -> None:
    """Builds the corpus, or what is missing of it.

    Raises:
      DataError: bad input, another config's folder, or an empty corpus.
    """
    report_path = directory / "report.json"
    if not report_path.exists():
        check_inputs(config)
    claim(directory, dataclasses.asdict(config))
    if report_path.exists():
        print(f"{directory} holds this corpus, complete: nothing to do.")
        print(format_report(json.loads(report_path.read_text())))
        return
    stages = Build(config, directory)
    stages.ingest()
    stages.distinct()
    cut = stages.ngrams()
    stages.flags()
    report = stages.report(cut)
    stages.records(report)
    write_file(report_path, json.dumps(report, indent=2) + "\n")
    print(format_report(report))
