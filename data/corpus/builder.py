"""Builds a corpus in stages: raw pairs to rules, vocabulary and records.

A stage is a table in DIR/stages: Parquet that the engine wrote, or a folder with a file
per source shard. DIR is the build's --workdir. Stages are written atomically, one after
the other. A killed build resumes at the first missing stage or shard of a stage.
DIR/records holds the dataset with its vocabulary and manifest. DIR/report.json and
DIR/report.html say how many pairs each rule dropped.
"""

import contextlib
import functools
import math
import pathlib
from typing import Any

import ibis

from align_jax import places
from align_jax.config import check_folder, claim_folder
from align_jax.errors import InputError, warned
from align_jax.locks import locked
from data.corpus import ngrams, rules
from data.corpus.build_files import (
    count_drops,
    count_rows,
    format_report,
    name_drops,
    read_report,
    remember_shards,
)
from data.corpus.captions import check_captions, describe_captions, write_captions
from data.corpus.config import CorpusConfig, described, with_defaults
from data.corpus.dataset import write_dataset
from data.corpus.embedding_rule import count_not_embedded
from data.corpus.engines import choose_engine
from data.corpus.ingest import ingest_shard
from data.corpus.ngram_counts import save_counts
from data.corpus.page import read_files, write_page
from data.corpus.pair_steps import COPIES, list_steps
from data.corpus.picture_rules import (
    check_picture_rules,
    judge_pairs,
    make_picture_rules,
    scores_schema,
)
from data.corpus.rule_counts import count_refusals, count_rules, unbroken
from data.corpus.score import score_shard
from data.corpus.stage_tables import StageTables
from data.pictures.evaluation_images import (
    EVALUATION_IMAGES,
    open_evaluation,
    write_evaluation,
)
from data.records.stages import materialise
from data.sources.source import list_shards


class Build(StageTables):
    """The stages of one corpus, in order; a method keeps a stage that exists."""

    def __init__(self, config: CorpusConfig, directory: pathlib.Path) -> None:
        """Opens the engine and makes the rules; see `StageTables`."""
        super().__init__(config, directory)
        self.picture_rules = make_picture_rules(config)

    def ingest(self) -> None:
        """Writes `pairs` (normalised), `images` (measured) and `drops` (counts).

        Nothing is done if the stage `distinct` exists.

        Raises:
          InputError: the source cannot be read, or its shards differ from those the
            build began with.
        """
        if self.stage("distinct").exists():
            return
        path = self.folder / "shards.json"
        shards = remember_shards(self.config.ingest, path)
        tasks = [
            functools.partial(
                ingest_shard,
                source=self.config.ingest,
                shard=shard,
                seed=self.config.seed,
                max_characters=self.config.max_characters,
                stages=self.folder,
                index=index,
            )
            for index, shard in enumerate(shards)
        ]
        pairs = self.engine.map(tasks, "ingest", "pair")
        if not pairs:
            raise InputError(
                f"{self.config.ingest.path} gave no pairs: {name_drops(self.folder)}"
            )

    def distinct(self) -> None:
        """Writes `distinct` and `pictures`: every pair and every picture once."""
        images = self.shards("images")
        measured = ["bytes", "width", "height", "format", "phash", "error"]
        self.save(
            "pictures",
            images.group_by("image_id").agg(
                shard=images.shard.min(), **{n: images[n].max() for n in measured}
            ),
        )
        pairs = self.shards("pairs")
        self.save("distinct", pairs.select(*rules.PAIR_COLUMNS).distinct())

    def ngrams(self) -> int:
        """Writes `texts`, `ngrams` and `rare_texts`.

        Returns:
          The cut: an n-gram is frequent if its count is at least this number.

        Raises:
          InputError: `config.rules.frequent_ngrams` is too small for any cut.
        """
        self.save("texts", ngrams.count_texts(self.table("distinct")))
        texts = self.table("texts")
        save_counts(self, texts)
        counted = self.table("ngrams")
        budget = self.config.rules.frequent_ngrams
        cut = self.engine.execute(ngrams.vocabulary_cut(counted, budget))
        if cut is None or math.isnan(cut):
            raise InputError(
                f"config.rules.frequent_ngrams is {budget}, fewer than the n-grams of"
                " the highest count; raise it"
            )
        self.save("rare_texts", ngrams.find_rare_texts(texts, counted, int(cut)))
        return int(cut)

    def flags(self) -> None:
        """Writes `evaluation`, if configured, and `flags`: `RULES` on each pair."""
        evaluation = ibis.memtable(EVALUATION_IMAGES.empty_table())
        if self.config.evaluation_images:
            materialise(
                self.stage("evaluation"),
                lambda path: write_evaluation(self.config.evaluation_images, path),
            )
            evaluation = self.table("evaluation")
        flagged = rules.flag_pairs(
            pairs=self.table("distinct"),
            pictures=self.table("pictures"),
            texts=self.table("texts"),
            rare_texts=self.table("rare_texts"),
            evaluation_images=evaluation.select("image_id"),
            bounds=self.config.rules,
        )
        self.save("flags", flagged)

    def score(self) -> None:
        """Writes `survivors` (pictures of the pairs that pass `flags`) and `scores`.

        Nothing is done if all picture rules are off or the stage `kept` exists.
        """
        off = self.off()
        used = {n: rule for n, rule in self.picture_rules.items() if n not in off}
        if self.stage("kept").exists() or not used:
            return
        survivors = unbroken(self.table("flags")).select("image_id").distinct()
        pictures = self.table("pictures").select("image_id", "shard")
        self.save("survivors", pictures.semi_join(survivors, "image_id"))
        shards = len(list((self.folder / "images").glob("*.parquet")))
        for rule in used.values():
            rule.prepare(stages=self, shards=shards)
        # If every core runs a process, more threads per model only compete.
        threads = None if 1 in (self.config.engine.workers, shards) else 1
        tasks = [
            functools.partial(
                score_shard,
                rules=used,
                schema=scores_schema(self.picture_rules),
                stages=self.folder,
                index=index,
                threads=threads,
            )
            for index in range(shards)
        ]
        self.engine.map(tasks, "look at pictures", "picture")

    def off(self) -> dict[str, str]:
        """Returns the picture rules that are off, as {name: reason}."""
        reasons = {name: rule.off() for name, rule in self.picture_rules.items()}
        return {name: why for name, why in reasons.items() if why}

    def judged(self) -> ibis.Table:
        """Returns all distinct pairs with a boolean column per rule, true if broken.

        If it is off, a picture rule has a column of false, any other rule no column.
        """
        judged = self._judged_alone()
        for step in list_steps(self.config).values():
            judged = step.judge(self, judged)
        return judged

    def _judged_alone(self) -> ibis.Table:
        """Returns `judged` without the steps that compare the pairs that are left."""
        scores = self.shards("scores") if (self.folder / "scores").exists() else None
        return judge_pairs(self.table("flags"), scores, self.picture_rules)

    def keep(self) -> None:
        """Writes `kept`, the pairs that break no rule and that every step keeps."""
        if self.stage("kept").exists():
            return
        kept = unbroken(self._judged_alone())
        kept = kept.select("image_id", "text", "key").distinct()
        for step in list_steps(self.config).values():
            kept = step.keep(self, kept)
        self.save("kept", kept)

    def report(self, cut: int) -> dict[str, Any]:
        """Returns the report, as `write_page` describes it; `cut` is from `ngrams`.

        Raises:
          InputError: no pair is left; the message gives the counts.
        """
        pairs, rows = count_rules(self.judged(), self.engine.execute)
        kept = self.table("kept")
        drops = count_drops(self.folder)
        raw = int(self.engine.execute(self.shards("pairs").count()))
        report: dict[str, Any] = {
            "name": self.config.name,
            "rows_in": count_rows(self.folder, raw + sum(drops.values())),
            "pairs_raw": raw,
            "pairs_in": pairs,
            "pairs_kept": int(self.engine.execute(kept.count())),
            "images_kept": int(self.engine.execute(kept.image_id.nunique())),
            "ngram_cut": cut,
            "drops": drops,
            "refused_pictures": count_refusals(
                self.table("pictures"), self.engine.execute
            ),
            "off": [{"rule": r, "reason": why} for r, why in self.off().items()],
            "rules": rows,
        }
        if self.config.pictures.embedding_model:
            report["not_embedded"] = count_not_embedded(self)
        for name, step in list_steps(self.config).items():
            report[name] = step.describe(self)
        if self.config.captions.path:
            report["captions"] = describe_captions(self)
        if not report["pairs_kept"]:
            first = ", ".join(f"{r['rule']} {r['first']}" for r in report["rules"])
            raise InputError(
                f"no pair of {report['pairs_in']} is left after the rules (dropped"
                f" first by: {first}); loosen config.rules"
            )
        return report

    def records(self, report: dict[str, Any]) -> None:
        """Writes the dataset to DIR/records; removes the stage `exchange`."""
        folder = self.directory / "records"
        materialise(folder, lambda path: write_dataset(self, report, path))
        places.remove(self.folder / "exchange")

    def page(self, report: dict[str, Any]) -> None:
        """Writes DIR/report.html."""
        tables = {n: self.table(n) for n in ("pictures", "ngrams", "kept")}
        tables["flags"] = self.judged()
        if self.config.pictures.embedding_model:
            tables["scores"] = self.shards("scores")
        copies = [self.table(n) for n in list_steps(self.config) if n in COPIES]
        if copies:
            tables["copies"] = ibis.union(*copies) if copies[1:] else copies[0]
        if self.config.embeddings.bounds:
            tables["pair_scores"] = self.shards("pair_scores")
        if self.config.balance.entries:
            tables["entry_counts"] = self.table("entry_counts")
        write_page(
            {**report, "config": described(self.config)},
            tables,
            functools.partial(read_files, self.shards("images"), self.engine.execute),
            self.directory / "report.html",
            self.engine.execute,
        )


def check_inputs(config: CorpusConfig) -> None:
    """Raises InputError if a source, model or other input is unknown or unreadable.

    A rule or class of this package that breaks its contract raises TypeError.
    """
    choose_engine(config.engine.kind)
    rules.check_rules(config.rules)
    list_shards(config.ingest)
    if config.evaluation_images:
        open_evaluation(config.evaluation_images)
    check_captions(config.captions)
    check_picture_rules(make_picture_rules(config))
    for step in list_steps(config).values():
        step.check(config)


def build(config: CorpusConfig, directory: pathlib.Path) -> None:
    """Builds the corpus, or the stages that are still missing; prints the report.

    Args:
      config: config of the corpus.
      directory: folder of the build, made if missing.

    Raises:
      InputError: bad input, `directory` belongs to another config or is in use, or no
        pair is left.
    """
    report_path = directory / "report.json"
    if not report_path.exists():
        check_inputs(config)
    fill = functools.partial(with_defaults, CorpusConfig)
    check_folder(directory, described(config), fill=fill)
    if report_path.exists():
        print(f"{directory} holds this corpus, complete: nothing to do.")
        print(format_report(read_report(report_path)))
        return
    with places.writing(directory), contextlib.ExitStack() as stack:
        stack.enter_context(locked(directory))
        claim_folder(directory, described(config), fill=fill)
        stages = stack.enter_context(contextlib.closing(Build(config, directory)))
        stages.ingest()
        if config.captions.path:
            write_captions(stages)
        stages.distinct()
        cut = stages.ngrams()
        stages.flags()
        stages.score()
        stages.keep()
        report = stages.report(cut)
        stages.records(report)
        with warned(f"{directory}/report.html is not written", "the corpus is whole"):
            stages.page(report)
    places.write_json(report_path, report)
    print(format_report(report))
