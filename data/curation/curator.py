"""Filters a pool in stages: metadata to facts, flags, and the rows that are kept.

The stages are as in `data.corpus.builder`, so a killed run continues. For each filter,
DIR/FILTER/subset.npy holds the uids of the rows that it keeps, and DIR/FILTER/kept the
rows themselves, a Parquet file for each of the pool's. DIR/report.json and
DIR/report.html say how many rows each rule dropped.
"""

import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

import ibis

from align_jax import places
from align_jax.config import check_folder, claim_folder
from align_jax.errors import InputError, warned
from align_jax.locks import locked
from data.corpus.build_files import remember_files
from data.corpus.config import described, with_defaults
from data.corpus.rule_counts import count_rules, unbroken
from data.corpus.score_ranks import ranked_score
from data.corpus.stage_tables import Stages
from data.curation.checks import (
    check_inputs,
    format_report,
    list_inputs,
    with_places,
)
from data.curation.clusters import (
    CENTROIDS,
    fit_centroids,
    write_clusters,
    write_sample,
    write_targets,
)
from data.curation.config import CurationConfig, FilterBounds, name_filter
from data.curation.facts import unsigned, write_columns, write_facts
from data.curation.kept import copy_subset, read_uids, write_kept
from data.curation.page import write_page
from data.curation.pool import find_columns, list_tables
from data.curation.rules import flag_rows, list_rules, score_of
from data.records.stages import materialise
from data.sources.subsets import write_subset


class Curation(Stages):
    """The stages of one curation, in order; a method keeps a stage that exists."""

    def __init__(self, config: CurationConfig, directory: pathlib.Path) -> None:
        """Opens the engine, and lists the pool's tables and columns."""
        super().__init__(config.engine, directory)
        self.config = config = with_places(config)
        self.tables = list_tables(config.pool.path, "config.pool.path")
        self.columns = find_columns(config)
        self.filters: dict[str, FilterBounds] = {}  # with their scores' bounds

    def check_tables(self) -> None:
        """Raises InputError if the files are not those the run began with."""
        remember_files(list_inputs(self.config), self.folder / "shards.json")

    def facts(self) -> int:
        """Writes `facts` and, if the pool has columns of its user, `columns`.

        Returns:
          The number of rows.

        Raises:
          InputError: the pool has no rows, or a uid occurs twice in the columns.
        """
        tasks = [
            functools.partial(
                write_facts, self.config, self.columns, table, index, self.folder
            )
            for index, table in enumerate(self.tables)
        ]
        rows = self.engine.map(tasks, "facts", "row")
        if not rows:
            raise InputError(f"{self.config.pool.path} has no rows")
        brought = [name for name, is_own in self.columns.items() if not is_own]
        if not brought:
            return rows
        pool = self.config.pool
        tables = list_tables(pool.columns, "config.pool.columns")
        self.engine.map(
            [
                functools.partial(
                    write_columns, pool.uid_column, brought, table, index, self.folder
                )
                for index, table in enumerate(tables)
            ],
            "columns",
            "row",
        )
        columns = self.shards("columns")
        twice = columns.group_by(["upper", "lower"]).agg(rows=columns.count())
        found = self.engine.execute(twice.filter(twice.rows > 1).limit(1))
        if len(found):
            uid = unsigned(found[["upper", "lower"]].to_numpy()[0])
            raise InputError(
                f"{pool.columns} (config.pool.columns) has the uid"
                f" {uid[0]:016x}{uid[1]:016x} more than once; wanted each once"
            )
        return rows

    def described_rows(self) -> ibis.Table:
        """Returns the facts about all rows, with the columns by uid."""
        facts = self.shards("facts")
        if not all(self.columns.values()):
            facts = _joined(facts, self.shards("columns"), ["upper", "lower"])
        return facts

    def bound_scores(self, rows: int) -> dict[str, FilterBounds]:
        """Returns the filters with `min_score` in place of `score_fraction`.

        The filter "" is that of the sample of k-means.

        Args:
          rows: number of rows of the pool.

        Raises:
          InputError: fewer rows have a score than a fraction asks for.
        """
        path = self.folder / "scores.json"
        if not path.exists():
            found: dict[str, float] = {}
            facts = self.described_rows()
            for name, bounds in self.config.bounds.items():
                if not bounds.score_fraction:
                    continue
                scores = facts.select(score=score_of(facts, bounds))
                rank = int(rows * bounds.score_fraction)
                score = ranked_score(scores, rank, self.engine.execute)
                if score is None:
                    where = name_filter(name)
                    raise InputError(
                        f"{where}.score_fraction is {bounds.score_fraction} of"
                        f" {rows} rows, but not more than {rank} have a finite"
                        f" {bounds.score!r}"
                    )
                found[name] = score
            places.write_json(path, found)
        bounded = places.read_object(path)
        return {
            name: dataclasses.replace(
                bounds,
                min_score=bounded.get(name, bounds.min_score),
                score_fraction=0.0,
            )
            for name, bounds in self.config.bounds.items()
        }

    def flagged(self, bounds: FilterBounds) -> ibis.Table:
        """Returns all rows with the columns that `flag_rows` adds for a filter."""
        facts = self.described_rows()
        if bounds.subset:
            name = self._save_subset(bounds.subset)
            listed = self.table(name).distinct().mutate(listed=True)
            facts = _joined(facts, listed, ["upper", "lower"])
        if bounds.image_clusters:
            clusters = self.shards("clusters").drop("cluster")
            facts = _joined(facts, clusters, ["shard", "row"])
        return flag_rows(facts, bounds)

    def _save_subset(self, path: str) -> str:
        """Writes a subset file as a stage, once; returns the stage's name."""
        paths = sorted({b.subset for b in self.config.bounds.values()})
        name = f"subset_{paths.index(path)}"
        copy_subset(path, self.stage(name))
        return name

    def clusters(self) -> None:
        """Writes `sample`, `candidates` and `clusters`, if a filter asks for clusters.

        Candidates are the rows that no other rule of a filter with clusters drops.
        """
        asking = [b for b in self.filters.values() if b.image_clusters]
        if not asking:
            return
        config = self.config.clusters
        if self.config.fits_clusters and not (self.folder / CENTROIDS).exists():
            sample = unbroken(self.flagged(self.filters[""]))
            lowest = sample.order_by("key", "shard", "row").limit(config.max_sample)
            self._split("sample", lowest)
            self._map(write_sample, "sample of embeddings")
            fit_centroids(config, self.config.seed, self.folder)
        write_targets(config, self.folder)
        others = [dataclasses.replace(b, image_clusters=False) for b in asking]
        kept = [unbroken(self.flagged(b)).select("shard", "row") for b in others]
        self._split("candidates", functools.reduce(ibis.union, kept).distinct())
        self._map(write_clusters, "clusters")

    def keep(self, name: str) -> dict[str, Any]:
        """Writes the flags of a filter, its kept rows and its subset file.

        Returns:
          The filter's part of the report: {"kept", "rules"}.
        """
        self.save(f"flags_{name}", self.flagged(self.filters[name]))
        flags = self.table(f"flags_{name}")
        kept = unbroken(flags)
        split = f"kept_{name}"
        self._split(split, kept)
        folder = self.directory / name / "kept"
        places.make_folder(folder)
        self.engine.map(
            [
                functools.partial(write_kept, table, index, self.folder / split, folder)
                for index, table in enumerate(self.tables)
            ],
            f"rows of {name}",
            "row",
        )
        uids = kept.select("upper", "lower").distinct()
        self.save(f"uids_{name}", uids.order_by("upper", "lower"))
        path = self.directory / name / "subset.npy"
        if not path.exists():
            stage = self.stage(f"uids_{name}")
            count = int(self.engine.execute(self.table(stage.stem).count()))
            write_subset(path, read_uids(stage), count)
        rules = list_rules(self.filters[name])
        _, counts = count_rules(flags, self.engine.execute)
        return {
            "kept": int(self.engine.execute(kept.count())),
            "min_score": self.filters[name].min_score,
            "rules": [
                {**row, "meaning": rule.describe(self.filters[name])}
                for row, rule in zip(counts, rules.values(), strict=True)
            ],
        }

    def _split(self, name: str, rows: ibis.Table) -> None:
        """Writes a stage with a folder for each of the pool's tables."""
        chosen = rows.select("shard", "row")
        materialise(
            self.folder / name,
            lambda path: self.engine.save_split(chosen, path, "shard", name),
        )

    def _map(self, function: Any, label: str) -> None:
        """Calls a function of clusters for each of the pool's tables."""
        tasks = [
            functools.partial(function, self.config.pool, table, index, self.folder)
            for index, table in enumerate(self.tables)
        ]
        self.engine.map(tasks, label, "row")


def _joined(facts: ibis.Table, columns: ibis.Table, by: list[str]) -> ibis.Table:
    """Adds columns to the facts; rows without a match get nulls."""
    joined = facts.left_join(columns, by)
    return joined.drop(*(f"{name}_right" for name in by))


def curate(config: CurationConfig, directory: pathlib.Path) -> None:
    """Filters the pool, or continues with the first missing stage; prints the report.

    Args:
      config: config of the curation.
      directory: folder of the curation, made if missing.

    Raises:
      InputError: bad input, or `directory` belongs to another config or is in use.
    """
    report_path = directory / "report.json"
    if not report_path.exists():
        check_inputs(with_places(config))
    fill = functools.partial(with_defaults, CurationConfig)
    check_folder(directory, described(config), fill=fill)
    if report_path.exists():
        print(f"{directory} holds these subsets, complete: nothing to do.")
        print(format_report(places.read_object(report_path)))
        return
    with places.writing(directory), contextlib.ExitStack() as stack:
        stack.enter_context(locked(directory))
        claim_folder(directory, described(config), fill=fill)
        stages = stack.enter_context(contextlib.closing(Curation(config, directory)))
        stages.check_tables()
        rows = stages.facts()
        stages.filters = stages.bound_scores(rows)
        stages.clusters()
        report: dict[str, Any] = {
            "name": config.name,
            "rows": rows,
            "filters": {name: stages.keep(name) for name in config.filters},
        }
        with warned(f"{directory}/report.html is not written", "the subsets are whole"):
            write_page(
                {**report, "config": described(config)},
                filters={name: stages.filters[name] for name in config.filters},
                facts=stages.described_rows(),
                flags={n: stages.table(f"flags_{n}") for n in config.filters},
                tables=stages.tables,
                pool=config.pool,
                path=directory / "report.html",
                execute=stages.engine.execute,
            )
    places.write_json(report_path, report)
    print(format_report(report))
