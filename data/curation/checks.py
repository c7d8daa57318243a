"""Checks and lists the inputs of a curation, and formats its report."""

import dataclasses
import pathlib
from typing import Any

from align_jax import places
from data.corpus.engines import choose_engine
from data.curation.config import CurationConfig
from data.curation.entities import load_entities
from data.curation.languages import LANGUAGE_MODELS
from data.curation.pool import embedding_files, find_columns, list_tables
from data.curation.vectors import read_matrix
from data.curation.wordnet import list_files
from data.sources.subsets import open_subset


def with_places(config: CurationConfig) -> CurationConfig:
    """Makes the paths of a config absolute, for processes in other folders."""

    def resolved(part: Any, names: str) -> Any:
        paths = {name: getattr(part, name) for name in names.split()}
        found = {name: path and places.resolve(path) for name, path in paths.items()}
        return dataclasses.replace(part, **found)

    filters = {name: resolved(b, "subset") for name, b in config.filters.items()}
    return dataclasses.replace(
        config,
        pool=resolved(config.pool, "path columns embeddings"),
        filters=filters,
        language=resolved(config.language, "model"),
        entities=resolved(config.entities, "words wordnet synsets"),
        clusters=resolved(config.clusters, "target centroids"),
    )


def check_inputs(config: CurationConfig) -> None:
    """Raises InputError if a file, model or column is missing or unreadable."""
    choose_engine(config.engine.kind)
    find_columns(config)
    bounds = config.bounds.values()
    language = config.language
    if language.kind in LANGUAGE_MODELS and any(b.languages for b in bounds):
        LANGUAGE_MODELS[language.kind](language.model)
    if any(b.text_entities for b in bounds):
        load_entities(config.entities)
    for path in {b.subset for b in bounds if b.subset}:
        open_subset(path)
    if any(b.image_clusters for b in bounds):
        embedding_files(config.pool, list_tables(config.pool.path, "config.pool.path"))
        for field in ("target", "centroids"):
            if path := getattr(config.clusters, field):
                read_matrix(places.local_path(path), f"config.clusters.{field}")


def list_inputs(config: CurationConfig) -> list[pathlib.Path]:
    """Lists the files that a curation reads: tables, embeddings, models and lists.

    Raises:
      InputError: a file is missing.
    """
    pool, bounds = config.pool, config.bounds.values()
    paths = tables = list_tables(pool.path, "config.pool.path")
    if pool.columns:
        paths = paths + list_tables(pool.columns, "config.pool.columns")
    named = [config.language.model, config.entities.words, config.entities.synsets]
    named += sorted({rules.subset for rules in bounds})
    if any(rules.image_clusters for rules in bounds):
        paths = paths + embedding_files(pool, tables)
        named += [config.clusters.target, config.clusters.centroids]
    if config.entities.wordnet:
        paths = paths + list_files(places.local_path(config.entities.wordnet))
    return paths + [places.local_path(path) for path in named if path]


def format_report(report: dict[str, Any]) -> str:
    """Formats a report for a terminal: each filter's rules and totals."""
    lines = []
    for name, found in report["filters"].items():
        lines.append(f"{name:<32}{'breaks':>12}{'dropped first':>15}")
        lines += [
            f"  {row['rule']:<30}{row['breaks']:>12}{row['first']:>15}"
            for row in found["rules"]
        ]
        kept = f"{found['kept']} of {report['rows']} rows kept"
        if found["min_score"] is not None:
            kept += f"; smallest score {found['min_score']!r}"
        lines.append(f"  {kept}")
    return "\n".join(lines)
